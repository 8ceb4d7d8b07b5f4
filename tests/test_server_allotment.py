"""Who holds which partition while models come, change and go."""

from pathlib import Path

import pytest

from efserve.errors import ConfigError, UsageError
from efserve.repository import ModelFolder, read_model
from efserve.room import Gpu, Room
from efserve.server.allotment import Allotment, Allotted, check_names
from efserve.server.options import ServeConfig
from efserve.shares import MemoryLimit, Share

FOUR = Room(((0, 1, 2, 3),))
ON_GPUS = Room(((0, 1, 2, 3),), gpus=(Gpu(0, "GPU-a", 132), Gpu(1, "GPU-b", 132)))
SHARE = 'parameters { key: "share_pct" value { string_value: "%d" } }'


def folder(root: Path, name: str, config: str = "") -> ModelFolder:
    """A model in Python, as the repository has it now."""
    (root / name / "1").mkdir(parents=True, exist_ok=True)
    (root / name / "1" / "model.py").write_text("class Model: ...")
    (root / name / "config.pbtxt").write_text(config)
    return read_model(root / name)


def allotment(options: ServeConfig, *folders: ModelFolder, room: Room = FOUR) -> Allotment:
    made = Allotment(options, lambda: room)
    assert made.arrange(folders) == {}
    return made


def cores(given: Allotted | None) -> list[tuple[int, ...]]:
    assert given is not None
    return [partition.cores for partition in given.partitions]


def test_the_command_line_keeps_what_it_gives(tmp_path: Path) -> None:
    options = ServeConfig(share=(Share("a", 50), Share("later", 25)))
    held = allotment(options, folder(tmp_path, "a"))
    assert (cores(held.held("a")), cores(held.held("later"))) == ([(0, 1)], [(2,)])
    held.release("a", held.held("a"))
    assert cores(held.held("a")) == [(0, 1)]
    assert cores(held.allot(folder(tmp_path, "later"))) == [(2,)]
    assert cores(held.allot(folder(tmp_path, "u"))) == [(3,)]


def test_what_a_config_asks_for_is_free_when_the_model_goes(tmp_path: Path) -> None:
    held = allotment(ServeConfig())
    a = held.allot(folder(tmp_path, "a", SHARE % 75))
    assert cores(a) == [(0, 1, 2)]
    with pytest.raises(UsageError, match=r"a 75 % \+ b 50 % = 125 %"):
        held.allot(folder(tmp_path, "b", SHARE % 50))
    assert held.held("b") is None
    held.release("a", a)
    assert cores(held.allot(folder(tmp_path, "b", SHARE % 50))) == [(0, 1)]


def test_a_reload_keeps_its_cores_unless_it_asks_anew(tmp_path: Path) -> None:
    held = allotment(ServeConfig())
    before = held.allot(folder(tmp_path, "a", SHARE % 50))
    held.allot(folder(tmp_path, "b", SHARE % 25))
    assert cores(held.allot(folder(tmp_path, "a", SHARE % 50))) == cores(before) == [(0, 1)]
    assert cores(held.allot(folder(tmp_path, "a", SHARE % 75))) == [(0, 1, 3)]
    held.restore("a", before)
    assert held.held("a") is before
    held.restore("c", None)
    assert held.held("c") is None


def test_a_model_that_was_loaded_again_keeps_what_it_got_then(tmp_path: Path) -> None:
    held = allotment(ServeConfig())
    first = held.allot(folder(tmp_path, "a", SHARE % 50))
    again = held.allot(folder(tmp_path, "a", SHARE % 25))
    held.release("a", first)  # the old workers have ended only now
    assert held.held("a") is again


def test_the_error_of_a_config_is_its_models_alone(tmp_path: Path) -> None:
    made = Allotment(ServeConfig(), lambda: FOUR)
    errors = made.arrange([folder(tmp_path, "a", "instance_group { kind: KIND_GPU }"), folder(tmp_path, "b")])
    assert isinstance(errors.pop("a"), ConfigError)
    assert errors == {}
    assert cores(made.held("b")) == [()]


def test_groups_are_told_as_they_are_served(tmp_path: Path) -> None:
    groups = 'instance_group [ { kind: KIND_AUTO count: 2 }, { name: "g" gpus: [ 1 ] } ]'
    model = folder(tmp_path, "a", groups)
    given = allotment(ServeConfig(), model, room=ON_GPUS).held("a")
    assert given is not None
    assert [(group.name, group.kind, group.count) for group in given.config.instance_groups] == [
        ("a_0", "CPU", 2),
        ("g", "GPU", 1),
    ]
    by_hand = allotment(ServeConfig(share=(Share("a", 50, "gpu0"),)), model, room=ON_GPUS).held("a")
    assert by_hand is not None
    (group,) = by_hand.config.instance_groups
    assert (group.kind, group.gpus, group.count) == ("GPU", (0,), 1)
    assert by_hand.of(model.resolve(1)).config.instance_groups == (group,)


def test_memory_limits_are_for_every_instance(tmp_path: Path) -> None:
    options = ServeConfig(instances=2, memory_limit=(MemoryLimit("a", 7),))
    given = allotment(options, folder(tmp_path, "a")).held("a")
    assert given is not None
    assert [partition.memory_limit_bytes for partition in given.partitions] == [7, 7]


def test_options_that_shares_overrule_are_told(tmp_path: Path) -> None:
    model = folder(tmp_path, "a")
    both = allotment(ServeConfig(instances=2, threads=2, share=(Share("a", 50), Share("a", 25))), model)
    assert both.notes == (
        "--instances is not for a: each --share is one instance",
        "--threads is not for a: an engine has as many threads as its share has cores",
    )
    assert allotment(ServeConfig(instances=2, threads=2), model).notes == ()


def test_names_are_checked() -> None:
    check_names(ServeConfig(share=(Share("a", 50),)), ["a"])
    with pytest.raises(UsageError, match="--share is for model 'b', which is not served; the models are: a"):
        check_names(ServeConfig(share=(Share("b", 50),)), ["a"])
    with pytest.raises(UsageError, match="--memory-limit is for model 'b'"):
        check_names(ServeConfig(memory_limit=(MemoryLimit("b", 5),)), ["a"])
