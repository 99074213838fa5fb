"""The depthwise convolution and the masked-patch loss against their peers, on a GPU or a CPU."""
