from contextlib import suppress

from models import create_model
from models.modes import evaluating


def test_modes_come_back() -> None:
    network = create_model("replknet_nano", 2).train()
    network.norm.eval()
    with suppress(KeyError), evaluating(network):
        assert not any(module.training for module in network.modules())
        raise KeyError
    assert network.training
    assert not network.norm.training
