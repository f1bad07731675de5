"""Boosted trees that tell WW, ZZ and QCD events of CMS apart."""

from xgboost import XGBClassifier


def model() -> XGBClassifier:
    """Return boosted trees that have not seen an event yet."""
    return XGBClassifier(
        n_estimators=300,
        max_depth=4,
        learning_rate=0.05,
        subsample=0.8,
        colsample_bytree=0.5,
    )
