"""The class activation map of a network that ends in global average pooling and a linear layer: in the graph, exact."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.replknet import RepLKNet


def class_maps(model: RepLKNet, features: Tensor) -> Tensor:
    """Evidence [B,classes,h,w] of features [B,C,h,w] = `model.forward_features(images)`.

    CAM (Zhou et al., CVPR 2016) with the bias: the mean over the positions is the logit, exactly, in the training and
    in the deploy form, because both the mean and the head are linear.
    """
    return F.conv2d(features, model.head.weight[:, :, None, None], model.head.bias)


class WithClassMap(nn.Module):
    """Images [B,3,H,W] -> logits [B,classes] and the evidence map of the answer [B,h,w]. No gradients: exportable."""

    def __init__(self, model: RepLKNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.model.forward_features(images)  # [B,C,h,w]
        logits = self.model.head(features.mean((2, 3)))  # [B,classes]
        answer = logits.argmax(1)  # [B]
        weight, bias = self.model.head.weight[answer], self.model.head.bias[answer]  # [B,C], [B]
        class_map = torch.einsum("bchw,bc->bhw", features, weight) + bias[:, None, None]
        return logits, class_map
