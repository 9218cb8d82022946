"""Samples set aside, in the proportions of the classes."""

import torch
from torch import Tensor

from srm_triton.checks import check_integers, check_number
from srm_triton.data.labelled_images import LabelledImages


def stratified_split(labels: Tensor, samples: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Chooses samples at random so that each class has its share of them, to within one sample.

    What is left over when shares are rounded down goes to the classes that lost most by it. For data sets of events:
    ``torch.utils.data.Subset(dataset, kept)``.

    Args:
        labels: [samples], of any integer type.
        samples: how many to choose, from 1 to one less than there are.
        seed: of the choice, ≥ 0.

    Returns:
        The indices that are kept, and those that are chosen, both ascending, int64.

    Raises:
        TypeError: for labels that are no integers, or numbers of another type.
        ValueError: for labels of another shape, numbers out of range, or if a class would have no sample left.

    Example:
        >>> kept, chosen = stratified_split(torch.tensor([0, 0, 0, 0, 1, 1]), samples=3)
        >>> kept.numel(), [0, 0, 1] == torch.tensor([0, 0, 0, 0, 1, 1])[chosen].tolist()
        (3, True)
    """
    check_integers("labels", labels)
    if labels.dim() != 1:
        raise ValueError(f"labels must have the shape [samples], got {list(labels.shape)}")
    samples = check_number("samples", samples, 1, whole=True)
    seed = check_number("seed", seed, 0, whole=True)
    if samples >= len(labels):
        raise ValueError(f"samples must be below {len(labels)}, the number of labels, got {samples}")
    classes, counts = labels.cpu().long().unique(return_counts=True)
    shares, lost = counts * samples // len(labels), counts * samples % len(labels)
    left = samples - int(shares.sum())
    can_lose = shares + 1 < counts
    if left > int(can_lose.sum()):
        raise ValueError(f"samples must leave each of {len(classes)} classes a sample, got {samples} of {len(labels)}")
    shares[lost.where(can_lose, -1).argsort(descending=True, stable=True)[:left]] += 1
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label, share in zip(classes.tolist(), shares.tolist(), strict=True):
        members = (labels.cpu() == label).nonzero().squeeze(1)
        chosen[members[torch.randperm(len(members), generator=generator)[:share]]] = True
    return (~chosen).nonzero().squeeze(1), chosen.nonzero().squeeze(1)


def hold_out(data: LabelledImages, samples: int, *, seed: int = 0) -> LabelledImages:
    """Sets training samples aside to choose settings with, in the proportions of the classes.

    Args:
        data: a data set.
        samples: how many training samples to set aside.
        seed: of the choice.

    Returns:
        The other training samples, with those set aside in the place of the test samples, so that nothing is chosen by
        the latter.

    Raises:
        TypeError: as `stratified_split`.
        ValueError: as `stratified_split`.

    Example:
        >>> from srm_triton.data import load_digits
        >>> selection = hold_out(load_digits(), 300)
        >>> len(selection.train_labels), len(selection.test_labels)
        (1137, 300)
    """
    split = stratified_split(data.train_labels, samples, seed=seed)
    kept, chosen = (indices.to(data.train_labels.device) for indices in split)
    images, labels = data.train_images, data.train_labels
    return LabelledImages(images[kept], labels[kept], images[chosen], labels[chosen], data.classes, data.class_names)
