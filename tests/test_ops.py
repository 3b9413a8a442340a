"""Operations that several rooms share."""

import os

import pytest
import torch

from fingerbench.ops import eight_bit
from fingerbench.workshop import peak_memory


def test_eight_bit_rounds_to_the_nearest_of_256_levels():
    x = torch.tensor([0.0, 0.4 / 255, 0.6 / 255, 100.4 / 255, 254.6 / 255, 1.0])
    assert torch.equal((eight_bit(x) * 255).round(), torch.tensor([0.0, 0, 1, 100, 255, 255]))
    assert torch.equal(eight_bit(eight_bit(x)), eight_bit(x))


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak cannot be reset here")
def test_peak_memory_sees_what_was_freed_and_forgets_what_was_before():
    cpu = torch.device("cpu")
    with peak_memory(cpu) as peak:
        before = peak()
        torch.ones(64 * 2**20)  # 256 MiB, freed at once
        grown = peak()
    assert grown > before + 200
    with peak_memory(cpu) as peak:
        assert peak() < grown - 100
