"""How many threads a config asks for; that a server tells of too many or too few is in test_start.py."""

import pytest

from export.configs import ServingSpec, configs, embedded_configs
from server.cores import threads_of


@pytest.mark.parametrize("form", [configs, embedded_configs])
@pytest.mark.parametrize("threads", [1, 2, 3, 64])
def test_a_build_uses_all_its_threads(form, threads):
    """Also where instances share them: two have half of an odd number each."""
    assert threads_of(form(ServingSpec(32, 32, "bicubic", 10, threads))["backbone"]) == (threads, threads)


@pytest.mark.parametrize(
    ("groups", "together"),
    [
        ("", 4),
        ("instance_group [{ kind: KIND_CPU count: 3 }]", 12),
        ("instance_group { count: 1 }\ninstance_group {\n  kind: KIND_CPU\n  count: 2\n}", 12),
        ("instance_group [{ kind: KIND_CPU count: 1 }, { kind: KIND_CPU count: 2 }] model_warmup [{ count: 9 }]", 12),
        ("instance_group [\n  { count: 1 gpus: [ 0, 1 ] },\n  { kind: KIND_CPU }, { count: 2 }\n]", 16),
        ("instance_group: [{ kind: KIND_CPU }] model_warmup [{ count: 3 }]", 4),
    ],
)
def test_instances_compute_at_the_same_time(groups, together):
    parameters = 'parameters [{ key: "INTRA_OP_THREAD_COUNT" value: { string_value: "4" } }]\n'
    assert threads_of(parameters + groups) == (4, together)


def test_a_config_without_threads():
    assert threads_of("instance_group [{ count: 2 }]") == (0, 0)
