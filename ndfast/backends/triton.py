def unusable(device): return "not built"
