"""The tables of cases of the tests, layer and end of a block, on a device against float64 on the CPU."""

import itertools
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

DTYPES = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}  # and the error that rounding explains


def check_tail(index: int, device: str) -> list[str]:
    """Return the failures of one case of ``tests/tail_cases.py``."""
    import tail_cases as t

    case, wrong = t.CASES[index], []
    settings = [(True, True, True), (False, True, True)]  # training, shortcut, ReLU
    if case.shape[1] == 12:
        settings = list(itertools.product([True, False], repeat=3))
    for setting, dtype in itertools.product(settings, DTYPES):
        try:
            t.compare(case, dtype, *setting, device)
        except Exception as error:  # whatever it is, the others are still to be seen
            wrong.append(f"tail {case} {dtype} {setting}: {type(error).__name__}: {str(error)[:300]}")
    return wrong


def check_layer(case: str, device: str) -> list[str]:
    """Return the failures of one case of ``tests/layer_cases.py``."""
    import layer_cases as t

    (shape, groups), wrong = t.CASES[case], []
    for layout, dtype in itertools.product(t.LAYOUTS, DTYPES):
        if (layout == "channels-last" and len(shape) == 3) or (layout == "expanded" and shape[0] == 0):
            continue
        exact, layer = t.random_layer(shape[1], groups), t.random_layer(shape[1], groups).float().to(device)
        x, grad = t.random_map(shape, dtype, layout), t.random_map(shape, dtype).flip(0)
        leaves = [x.to(device).requires_grad_(), x.double().requires_grad_()]
        try:
            found, want = (
                (y, *torch.autograd.grad(y, [leaf, *module.parameters()], grad.to(y)))
                for module, leaf in zip((layer, exact), leaves, strict=True)
                for y in [module(leaf)]
            )
            for a, b in zip(found, want, strict=True):
                # A gradient of a parameter is a sum in which much cancels.
                error = (a.cpu().double() - b).abs().max().item() if b.numel() else 0.0
                assert error <= 8 * DTYPES[dtype] * max(1.0, b.abs().max().item() if b.numel() else 0), error
            assert found[0].stride() == torch.empty_like(x).stride(), found[0].stride()
        except Exception as error:  # as above
            wrong.append(f"layer {case} {layout} {dtype}: {type(error).__name__}: {str(error)[:300]}")
    return wrong


def check(device: str, processes: int) -> list[dict[str, object]]:
    """Run both tables in several processes, which compile side by side."""
    tests = [str(Path(__file__).parents[1] / "tests")]
    sys.path.extend(tests)
    import layer_cases
    import tail_cases

    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=spawn, initializer=sys.path.extend, initargs=(tests,)) as pool:
        jobs = [pool.submit(check_tail, index, device) for index in range(len(tail_cases.CASES))]
        jobs += [pool.submit(check_layer, case, device) for case in layer_cases.CASES]
        wrong = [line for job in jobs for line in job.result()]
    for line in wrong:
        print("WRONG", line)
    print(f"cases: {len(jobs)} maps, {len(wrong)} of their settings wrong", flush=True)
    return [{"part": "correctness", "maps": len(jobs), "wrong": wrong}]
