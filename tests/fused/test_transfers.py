"""Copies between host and device keep every value, shape and type."""

import torch

from uncertune.fused.transfers import to_cpu, to_device, values


def test_many_tensors_come_back_as_they_were():
    tensors = [
        torch.arange(6).view(2, 3),
        torch.tensor([True, False]),
        torch.zeros(0, 4, dtype=torch.long),
        torch.tensor(2.5),
        torch.arange(8).view(4, 2).T,
    ]
    for tensor, copy in zip(tensors, to_cpu(tensors), strict=True):
        assert copy.dtype == tensor.dtype
        assert torch.equal(copy, tensor)
    assert to_cpu([]) == []


def test_scalars_of_every_type_become_numbers():
    scalars = [torch.tensor(3), torch.tensor(0.1), torch.tensor(0.1, dtype=torch.float64, requires_grad=True)]
    assert values(scalars) == [3.0, float(torch.tensor(0.1)), 0.1]
    assert values([]) == []


def test_a_copy_for_the_device():
    assert to_device(torch.arange(3), torch.device("cpu")).tolist() == [0, 1, 2]
