"""Boosted trees that find decays of the D0 to a kaon and a pion."""

from xgboost import XGBClassifier


def model() -> XGBClassifier:
    """Return boosted trees that have not seen an event yet."""
    return XGBClassifier(
        n_estimators=200,
        max_depth=4,
        learning_rate=0.05,
    )
