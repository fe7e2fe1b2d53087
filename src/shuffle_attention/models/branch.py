"""The modules of a residual branch one after the other, with BatchNorm and ReLU as one op where that is possible."""

from collections.abc import Iterable, Iterator

from torch import Tensor, nn

from .fused_block import is_hooked, norm_act

# Classes whose forward pass calls their children one after the other.
_SEQUENCES = {
    "torch.nn.modules.container.Sequential",
    "transformers.models.resnet.modeling_resnet.ResNetConvLayer",
    "transformers.models.resnet.modeling_resnet.ResNetShortCut",
}


def run_branch(x: Tensor, modules: Iterable[nn.Module]) -> Tensor:
    """Return the output of modules called one after the other.

    Args:
        x: Input of the first module.
        modules: Modules. Sequences are opened and identities left out, unless something observes them.
    """
    steps, before = [*_steps(modules)][::-1], None
    while steps:
        module = steps.pop()
        if type(module) is nn.BatchNorm2d:
            act = steps.pop() if steps and type(steps[-1]) is nn.ReLU else None
            x = norm_act(x, module, act, conv=before)
        else:
            x = module(x)
        before = module
    return x


def _steps(modules: Iterable[nn.Module]) -> Iterator[nn.Module]:
    for module in modules:
        cls = type(module)
        if is_hooked(module) or "forward" in vars(module):
            yield module
        elif f"{cls.__module__}.{cls.__qualname__}" in _SEQUENCES and "_root" not in vars(cls):
            yield from _steps(module.children())
        elif cls is not nn.Identity:
            yield module
