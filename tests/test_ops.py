"""Operations that several rooms share."""

import itertools
import os

import pytest
import torch

from fingerbench.ops import eight_bit, pieces, predict, without_trials
from fingerbench.workshop import peak_memory


def test_eight_bit_rounds_to_the_nearest_of_256_levels():
    x = torch.tensor([0.0, 0.4 / 255, 0.6 / 255, 100.4 / 255, 254.6 / 255, 1.0])
    assert torch.equal((eight_bit(x) * 255).round(), torch.tensor([0.0, 0, 1, 100, 255, 255]))
    assert torch.equal(eight_bit(eight_bit(x)), eight_bit(x))


class Flags(torch.nn.Module):
    """Notes what cuDNN may do while it is asked."""

    def forward(self, x):
        flags = torch.backends.cudnn
        self.noted = flags.allow_tf32, flags.benchmark
        if x.isnan().any():
            raise ValueError("no image")
        return x.flatten(1)


@pytest.mark.parametrize("before", [True, False])
def test_answers_are_whole_float32_and_the_flags_stay_what_they_were(monkeypatch, before):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", before)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", before)
    model, x = Flags(), torch.rand(3, 1, 2, 2)
    predict(model, x)
    assert model.noted == (False, before)
    with without_trials():
        predict(model, x)
        assert model.noted == (False, False)
    with pytest.raises(ValueError, match="no image"):
        predict(model, x * torch.nan)
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark) == (before, before)


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


def test_no_piece_of_several_is_one_image():
    for n, batch in itertools.product(range(2, 60), range(2, 12)):
        sizes = [len(piece) for piece in torch.arange(n).tensor_split(pieces(n, batch))]
        assert min(sizes) >= min(2, n) and max(sizes) - min(sizes) <= 1 and max(sizes) <= 1.5 * batch
    assert pieces(1, 8) == 1 and pieces(3, 1) == 3
