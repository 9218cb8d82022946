"""Whether a loop learns, by its losses and predictions."""

import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from srm_triton.checks import as_number, check_integers
from srm_triton.diagnosis.finding import Finding

CHANCE_PROBABILITY = 1e-3  # below, accuracy is no chance
FEWEST_STEPS, FEWEST_SAMPLES = 20, 200  # before learning is judged
_RECENT_STEPS = 1000  # of a loop


@dataclass(frozen=True)
class LearningReport:
    """What losses and predictions came to."""

    steps: int
    """How many were observed."""
    first_loss: float
    """Mean over the first tenth of the last steps, at most 1000; nan without losses."""
    last_loss: float
    """Mean over the last tenth; nan without losses."""
    finite: bool
    """Whether every loss was."""
    samples: int
    """Predictions to which the rest refers: of the later half of the last steps."""
    correct: int
    """How many were right."""
    most_frequent: float
    """Share of the most frequent label: the accuracy of always naming it."""
    predicted: int = -1
    """The class that was predicted most."""
    predicted_share: float = math.nan
    """How often."""
    guessing: float = math.nan
    """The loss of naming all classes with the same probability, if training is over and the loss is comparable."""

    @property
    def at_chance(self) -> bool:
        """Whether naming the most frequent class would be as accurate by chance, in 1 of 1000 cases or more.

        A one-sided binomial test: P(X ≥ correct) for X of `samples` trials of probability `most_frequent`.
        """
        return binomial_tail(self.correct, self.samples, self.most_frequent) > CHANCE_PROBABILITY


def binomial_tail(successes: int, trials: int, probability: float) -> float:
    """P(X ≥ successes) of a binomial variable.

    Example:
        >>> round(binomial_tail(2, 3, 0.5), 6)
        0.5
    """
    if successes <= 0 or probability >= 1:
        return 1.0
    if probability <= 0:
        return 0.0
    k = torch.arange(successes, trials + 1, dtype=torch.float64)
    n = torch.tensor(float(trials), dtype=torch.float64)
    logs = torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    logs += k * math.log(probability) + (n - k) * math.log1p(-probability)
    return min(1.0, float(logs.exp().sum()))


class Learning:
    """Losses and predictions of a loop, the last of them."""

    def __init__(self) -> None:
        self.steps = 0
        self.losses = deque[Tensor](maxlen=_RECENT_STEPS)
        self.finite: Tensor | bool = True
        self.predictions = deque[tuple[Tensor, Tensor]](maxlen=_RECENT_STEPS)  # and labels

    def observe(self, loss: Any, predictions: Any, labels: Any) -> None:
        """See `Watcher.observe`."""
        if (predictions is None) != (labels is None):
            raise ValueError(f"{'labels' if labels is None else 'predictions'} must be given too, got None")
        if loss is not None:
            loss = _as_loss(loss)
        if labels is not None:
            for name, value in (("predictions", predictions), ("labels", labels)):
                check_integers(name, value)
                if value.dim() != 1:
                    raise ValueError(f"{name} must have the shape [batch], got {list(value.shape)}")
            if predictions.shape != labels.shape:
                raise ValueError(
                    f"predictions must have the shape of labels, {list(labels.shape)}, got {list(predictions.shape)}"
                )
            self.predictions.append((predictions.to(torch.int64, copy=True), labels.to(torch.int64, copy=True)))
        if loss is not None:
            self.losses.append(loss)
            self.finite = loss.isfinite() & self.finite
        self.steps += 1

    def report(self) -> LearningReport | None:
        """What they came to; waits for the device."""
        if not self.steps:
            return None
        losses = [float(loss) for loss in self.losses]
        part = max(1, len(losses) // 10)
        first, last = (sum(some) / len(some) if some else math.nan for some in (losses[:part], losses[-part:]))
        later = [pair for pair in list(self.predictions)[len(self.predictions) // 2 :] if len(pair[0])]
        samples = correct = predicted = 0
        most_frequent = predicted_share = math.nan
        if later:
            named, labels = (torch.cat([pair[i].cpu() for pair in later]) for i in range(2))
            samples, correct = len(labels), int((named == labels).sum())
            most_frequent = int(labels.unique(return_counts=True)[1].max()) / samples
            classes, counts = named.unique(return_counts=True)
            predicted, predicted_share = int(classes[counts.argmax()]), int(counts.max()) / samples
        return LearningReport(
            self.steps, first, last, bool(self.finite), samples, correct, most_frequent, predicted, predicted_share
        )


def find_in_learning(learning: LearningReport | None) -> Iterator[Finding]:
    """What is conspicuous in losses and predictions."""
    if learning is None:
        return
    lower = "Lower the learning rate and start again."
    if not learning.finite:
        yield Finding("bad loss", None, "The loss became NaN or infinite.", lower)
        return
    enough = learning.steps >= FEWEST_STEPS
    falls = learning.last_loss < 0.9 * learning.first_loss
    judged = enough and learning.samples >= FEWEST_SAMPLES
    chance = judged and learning.at_chance
    losses = f"from {learning.first_loss:.3g} to {learning.last_loss:.3g} in {learning.steps} steps"
    if chance:
        yield Finding(
            "chance",
            None,
            f"{f'The loss falls, {losses}, but the' if falls else 'The'} accuracy of the last {learning.samples} "
            f"predictions, {learning.correct / learning.samples:.1%}, is that of chance: always naming the most "
            f"frequent class is right in {learning.most_frequent:.1%}.",
            "Check that labels belong to their samples (shuffled together, the same order), and that batch and time "
            "are not swapped; then try another learning rate.",
        )
    elif learning.last_loss > learning.guessing:
        yield Finding(
            "guessing",
            None,
            f"The loss, {learning.last_loss:.3g}, ends above that of guessing, {learning.guessing:.3g}.",
            "Try another learning rate: ten times lower first, or higher where the loss hardly changes.",
        )
    elif enough and not falls and not math.isnan(learning.first_loss) and not (judged and not learning.at_chance):
        yield Finding(
            "no descent",
            None,
            f"The loss does not fall: {losses}.",
            "Try another learning rate, ten times lower first; check that the optimizer holds the model's parameters.",
        )
    if judged and learning.predicted_share > max(0.95, learning.most_frequent + 0.05):
        yield Finding(
            "one class",
            None,
            f"Of the last {learning.samples} predictions {learning.predicted_share:.0%} name class "
            f"{learning.predicted}, the most frequent label has {learning.most_frequent:.0%}.",
            "Look whether the output layer fires (output=True under the event rule), and lower the learning rate.",
        )


def _as_loss(loss: Any) -> Tensor:
    loss = loss if isinstance(loss, Tensor) else as_number(loss)
    if isinstance(loss, bool) or not isinstance(loss, Tensor | int | float):
        raise TypeError(f"loss must be a number or a scalar tensor, got {type(loss).__name__}")
    value = torch.as_tensor(loss).detach()
    if value.numel() != 1 or value.is_complex():
        raise ValueError(f"loss must be a scalar, got {list(value.shape)} of {value.dtype}")
    return value.to(torch.float64, copy=True).view(())
