"""The logic of the benchmarks; what they measure is not tested."""

import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from shuffle_attention import ShuffleAttention

ROOT = Path(__file__).parents[2]


@pytest.fixture
def load(monkeypatch):
    """Return a function that imports a module of benchmarks/."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)  # those of the tests
    return importlib.import_module


@pytest.fixture
def results(load, monkeypatch, tmp_path):
    """Return the folder that results are written to, which is empty."""
    monkeypatch.setattr(load("timing"), "RESULTS", tmp_path)
    return tmp_path


@pytest.mark.parametrize(("seconds", "failed"), [(1.0, []), (1.24, []), (1.3, ["row"])])
def test_gate_fails_for_a_slower_op_and_not_for_one_slow_call(load, monkeypatch, seconds, failed):
    gate, clock, slow = load("gate"), [0.0], [50.0]

    def ours() -> None:
        clock[0] += seconds + (slow.pop() if slow and clock[0] > 9 else 0)

    def baseline() -> None:
        clock[0] += 1

    monkeypatch.setattr("shuffle_attention.sanet.timing.time", SimpleNamespace(perf_counter=lambda: clock[0]))
    assert gate.failures({"row": lambda: (ours, baseline)}, {"row": 1.0}) == failed
    assert not slow


@pytest.mark.parametrize(
    ("ratios", "recorded", "failed"),
    [
        ([1.24], {"row": 1.0}, []),
        ([9.0, 1.1], {"row": 1.0}, []),  # one outlier
        ([9.0, 1.26], {"row": 1.0}, ["row"]),
        ([9.0], {}, []),  # nothing is recorded
    ],
)
def test_gate_measures_again_before_it_fails(load, monkeypatch, ratios, recorded, failed):
    gate, left = load("gate"), list(ratios)
    monkeypatch.setattr(gate, "measure", lambda make: left.pop(0))
    assert gate.failures({"row": None}, recorded) == failed
    assert not left


@pytest.mark.parametrize(("codes", "code"), [([0, 0], 0), ([0, 1], 1), ([-11, 0], 1)])
def test_gate_fails_if_it_fails_or_crashes_on_one_instruction_set(load, monkeypatch, codes, code):
    gate, left = load("gate"), list(codes)
    run = SimpleNamespace(run=lambda *_, **__: SimpleNamespace(returncode=left.pop(0)))
    monkeypatch.setattr(gate, "subprocess", run)
    monkeypatch.setattr(gate, "instruction_sets", lambda: {"AVX512": {}, "AVX2": {}})
    monkeypatch.setattr("sys.argv", ["gate.py"])
    assert gate.main() == code


def test_gate_records_every_row_and_keeps_other_processors(load, results, monkeypatch):
    gate = load("gate")
    for processor, ratio in (("one", 1.5), ("two", 1.7), ("one", 1.6)):
        monkeypatch.setattr("sys.argv", ["gate.py", "--here", "--record"])
        monkeypatch.setattr(gate, "processor", lambda processor=processor: processor)
        monkeypatch.setattr(gate, "measure", lambda make, ratio=ratio: ratio)
        assert gate.main() == 0
    (section,) = json.loads((results / "gate.json").read_text()).values()
    assert {row["processor"]: row["layer forward / group norm"] for row in section["rows"]} == {"one": 1.6, "two": 1.7}
    assert all(row.keys() == {"processor", *gate.ROWS} for row in section["rows"])


def test_instruction_set_of_a_processor_with_avx2_only_is_measured_once(load, monkeypatch):
    timing = load("timing")
    for best, sets in (("AVX512", ["AVX512", "AVX2"]), ("AVX2", ["AVX2"]), ("DEFAULT", ["DEFAULT"])):
        monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda best=best: best)
        assert list(timing.instruction_sets()) == sets


def test_results_replace_the_section_of_their_instruction_set(load, results, monkeypatch):
    timing = load("timing")
    for best, value in (("AVX2", 1), ("AVX512", 2), ("AVX2", 3)):
        monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda best=best: best)
        timing.write("some", [{"value": value}])
    values = {name: section["rows"][0]["value"] for name, section in timing.read("some").items()}
    assert list(values.items()) == [("AVX512", 2), ("AVX2", 3)]


def test_block_ends_and_layers_are_timed_beside_their_baselines(load, results, monkeypatch, capsys):
    for name in ("layer", "tail"):
        benchmark = load(name)
        monkeypatch.setattr(benchmark, "STAGES", [(128, 3)])
        monkeypatch.setattr(
            "sys.argv", [name, "--batches", "1", "--repetitions", "1", "--threads", "1", "--name", name]
        )
        benchmark.main()
        (section,) = load("timing").read(name).values()
        assert len(section["rows"]) == 2
        assert all(ratio[0] > 0 for row in section["rows"] for ratio in row["ratios"].values())
    assert "fused both ways" in capsys.readouterr().out


def test_figures_name_models_and_scenes_that_exist(load):
    figures, network = load("figures"), load("network")
    for table in figures.TABLES.values():
        for scene, names in figures.scenes_of(table).items():
            assert scene.job in network.JOBS
            if scene.job not in ("block end", "Mask R-CNN inference", "Mask R-CNN training step"):
                assert set(names) <= set(network.MODELS)


def test_figures_pool_the_repetitions_of_processes(load, results, monkeypatch, capsys):
    figures = load("figures")
    parts = iter([[1.0, 3.0], [2.0]])

    class Child:
        def __init__(self, *_, **__):
            seconds = next(parts)
            models = {"sa": [2 * s for s in seconds], "plain": seconds}
            self.stdout = json.dumps([0, models]) + "\n"

    monkeypatch.setattr(figures, "subprocess", SimpleNamespace(run=Child, PIPE=None))
    figure = figures.Figure("SA / plain", "inference", "sa", "plain", 1.0, layouts=("NCHW",))
    monkeypatch.setitem(figures.TABLES, "figures", [figure])
    monkeypatch.setattr("sys.argv", ["figures.py", "--processes", "2", "--name", "figures"])
    figures.main()
    (section,) = load("timing").read("figures").values()
    (measured,) = section["rows"]
    assert measured["ratio"] == [2.0, 2.0, 2.0]
    assert measured["repetitions"] == 3
    assert "MISSED" in capsys.readouterr().out


def test_the_constant_attention_is_shuffle_attention_before_its_gates_move(load):
    x = torch.randn(2, 16, 5, 5)
    start = ShuffleAttention(16, 4, shuffle=False)
    torch.testing.assert_close(load("constant_attention").Constant()(x), start(x), rtol=1e-6, atol=1e-6)
