"""Boosted trees for four correlated Gaussian variables."""

from xgboost import XGBClassifier


def model() -> XGBClassifier:
    """Return boosted trees that have not seen an event yet."""
    return XGBClassifier(
        n_estimators=300,
        max_depth=6,
        learning_rate=0.05,
        min_child_weight=5,
    )
