"""The commands about the installation: the doctor, and completion in the shells."""

import json
import shutil
import subprocess

import pytest
import timm
import torch
from torch import nn

from conftest import sanet_here
from shuffle_attention.kernels import use_reference
from shuffle_attention.kernels.backends import cpu
from shuffle_attention.models.fused_block import obstacles


def test_the_doctor_reports_versions_kernels_and_extras(tmp_path, capsys):
    assert sanet_here("doctor", "--json", tmp_path / "seen.json") == 0
    printed = capsys.readouterr().out
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert seen["torch"] == torch.__version__
    assert "agree with the reference" in seen["kernels"]
    assert all(f"{name}  " in printed and text in printed for name, text in seen.items())


def test_without_kernels_the_doctor_fails_and_says_how_to_get_them(monkeypatch, capsys):
    monkeypatch.setattr(cpu, "loaded", False)
    assert sanet_here("doctor") == 1
    assert "not built; install a C++ compiler" in capsys.readouterr().out


def test_kernels_that_compute_something_else_are_reported(monkeypatch, capsys):
    monkeypatch.setattr(
        "shuffle_attention.attention.shuffle.ShuffleAttention.forward", lambda self, x: torch.rand(3, 1)
    )
    assert sanet_here("doctor") == 1
    assert "they differ from the reference" in capsys.readouterr().out


def test_the_doctor_says_which_blocks_run_as_one_op(run, capsys):
    assert sanet_here("doctor", run / "best.pt") == 0
    assert "8 residual blocks of 8 end in one op" in capsys.readouterr().out
    assert sanet_here("doctor", "resnet18") == 0
    assert "8 known residual blocks run module by module; after attach(model, 'none')" in capsys.readouterr().out
    assert sanet_here("doctor", "resnet1") == 2
    assert "no model 'resnet1'; did you mean" in capsys.readouterr().err


def test_the_reason_of_each_block_that_is_not_fused_is_given():
    model = timm.create_model("sa_resnet18")
    ends = [name for name, module in model.named_modules() if hasattr(module, "sa")]
    images = torch.zeros(2, 3, 32, 32)
    assert obstacles(model.eval(), images) == (len(ends), {})
    model.get_submodule(f"{ends[0]}.sa").register_forward_hook(lambda *_: None)
    model.get_submodule(ends[1]).act2 = nn.SiLU()
    fused, reasons = obstacles(model, images)
    assert fused == len(ends) - 2
    assert list(reasons) == [f"{name}.bn2" for name in ends[:2]]
    assert list(reasons.values()) == [
        "a hook observes its modules",
        "one op computes BatchNorm2d, ShuffleAttention and ReLU, and not BatchNorm2d, ShuffleAttention, SiLU",
    ]
    with use_reference():
        fused, reasons = obstacles(model, images)
    assert fused == 0
    assert "there is no kernel for torch.float32 on cpu" in reasons.values()


# Each prints what would complete the words `sanet ...` on a line of its own.
SHELLS = {
    "bash": """source /dev/stdin; COMP_WORDS=(sanet {} ""); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
        _shtab_sanet sanet "" "${{COMP_WORDS[-2]}}"; printf '%s\\n' "${{COMPREPLY[@]}}" """,
    "fish": "source; complete -C 'sanet {} '",
    "zsh": 'autoload -U compinit; compinit -u -D; eval "$(cat)"; echo ${{_comps[sanet]}} {}',
}


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_completes_commands_options_and_choices(shell, capsys):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    assert sanet_here("completion", shell) == 0
    script = capsys.readouterr().out

    def completed(words: str) -> list[str]:
        command = [shell, *(["--norc"] if shell == "bash" else []), "-c", SHELLS[shell].format(words)]
        ended = subprocess.run(command, input=script, capture_output=True, text=True, check=True, timeout=60)
        return [line.split("\t")[0] for line in ended.stdout.splitlines()]

    if shell == "zsh":  # its completion runs only at a prompt
        assert completed("") == ["_shtab_sanet "] or completed("") == ["_shtab_sanet"]
        return
    assert {"train", "eval", "detect", "doctor"} <= set(completed(""))
    assert {"train", "predict"} <= set(completed("detect"))
    assert completed("train --precision") == ["fp32", "bf16", "fp16"]
