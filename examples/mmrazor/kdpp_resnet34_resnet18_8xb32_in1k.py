# ruff: noqa: C408
"""KD++ for MMRazor 1.0: ResNet-34 to ResNet-18 on ImageNet.

    python tools/train.py examples/mmrazor/kdpp_resnet34_resnet18_8xb32_in1k.py

in MMRazor's folder, where class_means.safetensors holds the teacher's class means [1000, 512].
"""

_base_ = [
    "mmcls::_base_/datasets/imagenet_bs32.py",
    "mmcls::_base_/schedules/imagenet_bs256.py",
    "mmcls::_base_/default_runtime.py",
]

custom_imports = dict(imports=["ndfast.integrations.mmrazor"])

model = dict(
    _scope_="mmrazor",
    type="SingleTeacherDistill",
    data_preprocessor=dict(
        type="ImgDataPreprocessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
    ),
    architecture=dict(cfg_path="mmcls::resnet/resnet18_8xb32_in1k.py", pretrained=False),
    teacher=dict(cfg_path="mmcls::resnet/resnet34_8xb32_in1k.py", pretrained=True),
    distiller=dict(
        type="ConfigurableDistiller",
        student_recorders=dict(
            features=dict(type="ModuleInputs", source="head.fc"),
            logits=dict(type="ModuleOutputs", source="head.fc"),
            labels=dict(type="ModuleInputs", source="head.loss_module"),
        ),
        teacher_recorders=dict(
            features=dict(type="ModuleInputs", source="head.fc"),
            logits=dict(type="ModuleOutputs", source="head.fc"),
        ),
        distill_losses=dict(
            loss_kd=dict(type="KLDivergence", tau=1, loss_weight=1),
            loss_nd=dict(type="NDLoss", class_means="class_means.safetensors", loss_weight=1),
        ),
        loss_forward_mappings=dict(
            loss_kd=dict(
                preds_S=dict(from_student=True, recorder="logits"),
                preds_T=dict(from_student=False, recorder="logits"),
            ),
            loss_nd=dict(
                s_feature=dict(from_student=True, recorder="features", data_idx=0),
                t_feature=dict(from_student=False, recorder="features", data_idx=0),
                gt_labels=dict(from_student=True, recorder="labels", data_idx=1),
            ),
        ),
    ),
)

find_unused_parameters = True

val_cfg = dict(_delete_=True, type="mmrazor.SingleTeacherDistillValLoop")
