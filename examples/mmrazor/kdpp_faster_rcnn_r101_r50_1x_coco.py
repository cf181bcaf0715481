# ruff: noqa: C408
"""KD++ for MMRazor 1.0 and MMDetection 3: Faster R-CNN, R-101 to R-50, on COCO.

    python tools/train.py examples/mmrazor/kdpp_faster_rcnn_r101_r50_1x_coco.py

in MMRazor's folder, where class_means.safetensors holds the class means [81, 1024] of the teacher's
box features, background last.
"""

_base_ = [
    "mmdet::_base_/datasets/coco_detection.py",
    "mmdet::_base_/schedules/schedule_1x.py",
    "mmdet::_base_/default_runtime.py",
]

custom_imports = dict(imports=["ndfast.integrations.mmrazor"])

model = dict(
    _scope_="mmrazor",
    type="SingleTeacherDistill",
    architecture=dict(cfg_path="mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py"),
    teacher=dict(cfg_path="mmdet::faster_rcnn/faster-rcnn_r101_fpn_2x_coco.py", pretrained=True),
    distiller=dict(
        type="ConfigurableDistiller",
        # Both box heads must read the same boxes: the student takes those that the teacher sampled.
        # Its RPN takes the teacher's sample of the anchors, too, which is as random as its own.
        distill_deliveries=dict(
            samples=dict(
                type="MethodOutputs",
                max_keep_data=1000,
                method_path=("mmdet.models.task_modules.samplers.base_sampler.BaseSampler.sample"),
            )
        ),
        student_recorders=dict(
            features=dict(type="ModuleInputs", source="roi_head.bbox_head.fc_cls"),
            logits=dict(type="ModuleOutputs", source="roi_head.bbox_head.fc_cls"),
            labels=dict(type="ModuleInputs", source="roi_head.bbox_head.loss_cls"),
        ),
        teacher_recorders=dict(
            features=dict(type="ModuleInputs", source="roi_head.bbox_head.fc_cls"),
            logits=dict(type="ModuleOutputs", source="roi_head.bbox_head.fc_cls"),
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
                label_weights=dict(from_student=True, recorder="labels", data_idx=2),
            ),
        ),
    ),
)

find_unused_parameters = True

val_cfg = dict(_delete_=True, type="mmrazor.SingleTeacherDistillValLoop")
