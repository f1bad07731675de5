"""Few and small boosted trees, as suits few events."""

from xgboost import XGBClassifier


def model() -> XGBClassifier:
    """Return boosted trees that have not seen an event yet."""
    return XGBClassifier(
        n_estimators=100,
        max_depth=3,
        learning_rate=0.05,
        min_child_weight=10,
        subsample=0.5,
        colsample_bytree=0.7,
    )
