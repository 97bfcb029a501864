"""The length-controlled win rate of AlpacaEval 2: what a judge would prefer if both answers were equally long.

A logistic regression explains the preferences by the difference of the lengths, the instruction's difficulty and
which model answered; the win rate is its prediction where the lengths do not differ. Beside the model's answers it is
fitted, with a small weight, to the baseline's own answers made longer and shorter on request (`Gamed`), so that the
length has its effect. The formula is of Dubois et al., "Length-Controlled AlpacaEval" (arXiv:2404.04475), in the form
that the leaderboard's package fits: `alpaca_eval` 0.6, `metrics/glm_winrate.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from fusejax.common.cli import UserError

GAMED_WEIGHT = 0.2 / 2
"""Of each gamed answer: 0.2 for both baselines together."""
FOLDS = 5
SEED = 123
"""Of liblinear's random order of coordinates, which shows in the last digits."""


@dataclass(frozen=True)
class Compared:
    """Answers that a judge compared with the baseline's."""

    preference: Float[np.ndarray, "N"]
    """1: this answer is better; 0: the baseline's; NaN: no judgment."""
    length: Float[np.ndarray, "N"]
    """Characters."""
    baseline_length: Float[np.ndarray, "N"]
    difficulty: Float[np.ndarray, "N"]
    """Of the instruction, as the leaderboard's models found it."""


@dataclass(frozen=True)
class Gamed:
    """Comparisons of the baseline with itself, asked for longer and for shorter answers."""

    preference: Float[np.ndarray, "G"]
    delta: Float[np.ndarray, "G"]
    """Difference of the lengths, in standard deviations."""
    difficulty: Float[np.ndarray, "G"]


def length_controlled(compared: Compared, gamed: Gamed) -> Callable[[Float[np.ndarray, "N"]], float]:
    """The win rate in percent as a function of how often each answer counts.

    How strongly the regression is regularised is found here, once, by cross-validation over all answers, each counted
    once: with weights of one, the function gives the published number. Other weights, as a bootstrap draws them, have
    the lengths standardised and the regression fitted again, but not the regularisation looked for, which takes thirty
    times as long. Answers without a judgment count in the mean, though not in the fit.

    Returns:
      weights [N] -> win rate; NaN where no answer that counts has a judgment.

    Raises:
      UserError: scikit-learn is not installed.
    """
    there = ~np.isnan(compared.preference)
    if not there.any():
        return lambda weights: float("nan")
    if (compared.preference == 0.5).all() and (compared.length == compared.baseline_length).all():
        return lambda weights: 50.0  # The baseline itself: by definition.
    preferences = np.concatenate([gamed.preference, compared.preference[there]])

    def rows(weights: Float[np.ndarray, "N"]) -> tuple[Float[np.ndarray, "K 3"], Float[np.ndarray, "K"]]:
        """What the regression sees, and how often each row counts."""
        delta = _standardised(compared.baseline_length - compared.length, weights)
        theirs = _features(gamed.delta, gamed.difficulty, ours=False)
        ours = _features(delta[there], compared.difficulty[there], ours=True)
        return np.concatenate([theirs, ours]), np.concatenate([np.full(len(theirs), GAMED_WEIGHT), weights[there]])

    features, counts = rows(np.ones(len(there)))
    regularisation = _cross_validated(features, preferences, counts)
    level = _features(np.zeros(len(there)), compared.difficulty, ours=True)

    def win_rate(weights: Float[np.ndarray, "N"]) -> float:
        if not weights[there].any():
            return float("nan")
        features, counts = rows(weights)
        coefficients = _fitted(features, preferences, counts, regularisation)
        return 100 * float(np.average(1 / (1 + np.exp(-level @ coefficients)), weights=weights))

    return win_rate


def _standardised(difference: Float[np.ndarray, "N"], weights: Float[np.ndarray, "N"]) -> Float[np.ndarray, "N"]:
    """In sample standard deviations, weights being counts; zeros where nothing differs."""
    total = weights.sum()
    centred = difference - np.average(difference, weights=weights)
    variance = (weights @ centred**2) / (total - 1) if total > 1 else 0.0
    return difference / np.sqrt(variance) if variance > 0 else np.zeros_like(difference)


def _features(
    delta: Float[np.ndarray, "K"], difficulty: Float[np.ndarray, "K"], *, ours: bool
) -> Float[np.ndarray, "K 3"]:
    return np.stack([np.tanh(delta), difficulty, np.full(len(delta), float(ours))], axis=1)


def _doubled(
    features: Float[np.ndarray, "K 3"], preferences: Float[np.ndarray, "K"], counts: Float[np.ndarray, "K"]
) -> tuple[Float[np.ndarray, "2*K 3"], Int[np.ndarray, "2*K"], Float[np.ndarray, "2*K"]]:
    """Every row as won and as lost, with weights as the preference has it: a regression on probabilities."""
    labels = np.repeat([1, 0], len(preferences))
    return np.tile(features, (2, 1)), labels, np.tile(counts, 2) * np.concatenate([preferences, 1 - preferences])


def _cross_validated(
    features: Float[np.ndarray, "K 3"], preferences: Float[np.ndarray, "K"], counts: Float[np.ndarray, "K"]
) -> float:
    """The C, of ten, under which left-out rows are predicted best."""
    sklearn, linear_model, metrics, model_selection = _scikit_learn()
    inputs, labels, weights = _doubled(features, preferences, counts)

    def log_loss(y_true, y_pred, probability, count):
        # Of the preference: the label says only which half of the doubled rows this is.
        predicted = np.clip(y_pred, 1e-15, 1 - 1e-15)
        return -np.mean(count * (probability * np.log(predicted) + (1 - probability) * np.log(1 - predicted)))

    with sklearn.config_context(enable_metadata_routing=True):
        scorer = metrics.make_scorer(log_loss, response_method="predict_proba", greater_is_better=False)
        found = linear_model.LogisticRegressionCV(
            cv=model_selection.GroupKFold(min(FOLDS, len(preferences))),  # Fewer if a limit leaves one instruction.
            scoring=scorer.set_score_request(probability=True, count=True),
            use_legacy_attributes=False,
            l1_ratios=(1.0,),
            solver="liblinear",
            fit_intercept=False,
            random_state=SEED,
        ).set_fit_request(sample_weight=True)
        rows = np.arange(len(preferences))
        found.fit(
            inputs,
            labels,
            sample_weight=weights,
            groups=np.tile(rows, 2),
            probability=np.tile(preferences, 2),
            count=np.tile(counts, 2),
        )
    return float(found.C_)


def _fitted(
    features: Float[np.ndarray, "K 3"],
    preferences: Float[np.ndarray, "K"],
    counts: Float[np.ndarray, "K"],
    regularisation: float,
) -> Float[np.ndarray, "3"]:
    _, linear_model, _, _ = _scikit_learn()
    inputs, labels, weights = _doubled(features, preferences, counts)
    model = linear_model.LogisticRegression(
        C=regularisation, l1_ratio=1.0, solver="liblinear", fit_intercept=False, random_state=SEED
    )
    counted = weights > 0
    return model.fit(inputs[counted], labels[counted], sample_weight=weights[counted]).coef_[0]


def _scikit_learn():
    try:
        import sklearn
        from sklearn import linear_model, metrics, model_selection
    except ModuleNotFoundError:
        raise UserError("the length-controlled win rate needs scikit-learn: pip install 'fusejax[benchmark]'") from None
    return sklearn, linear_model, metrics, model_selection
