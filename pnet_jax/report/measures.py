"""Explanations of the measures in the tables of an evaluation page."""

from __future__ import annotations

from collections.abc import Iterable

# Explanations by prefix of the measure's name; the longest match is used.
EXPLANATIONS = {
    "1 - PDiv within": "Similarity of portraits, 1 − portrait divergence, of two scans of one participant; 1 for identical portraits",
    "1 - PDiv between": "Similarity of portraits of scans of two participants",
    "1 - PDiv noise floor": "Similarity of portraits of two scans after the edges of each were randomly reassigned to its pairs of nodes",
    "1 - PDiv constant network": "Similarity of portraits of a network that does not depend on the scan",
    "1 - PDiv to reference": "Similarity of portraits of a scan and the reference of the same participant",
    "1 - PDiv to other references": "Similarity of portraits of a scan and the references of other participants",
    "individual part": "Similarity within minus between participants",
    "to reference, individual part": "Similarity to the reference of the same participant minus that to the references of others",
    "ICC(1,1)": "Intraclass correlation of an edge: share of its variance that is due to differences between participants",
    "agreement": "Share of locations that are assigned to the same parcel",
    "accuracy": "Share of participants whose most similar scan on the other occasion is from the same participant",
    "accuracy by chance": "Accuracy after a random permutation of the participants, with the range of 95 % of the permutations",
    "discriminability": "Share of comparisons in which two scans of one participant are more similar than scans of two; 0.5 by chance",
    "I_self": "Mean similarity of two scans of one participant",
    "I_others": "Mean similarity of scans of two participants",
    "I_diff": "100 times the difference of I_self and I_others",
    "Dice": "Overlap of parcels, twice the shared locations divided by the sum of the sizes",
    "AUC": "Probability that a random participant of the positive class is ranked above one of the other class; 0.5 by chance",
    "AUC within sites": "AUC of the participants of each site, averaged over sites",
    "balanced accuracy": "Mean of sensitivity and specificity at a probability of 0.5",
    "Brier score": "Mean squared difference of the predicted probability and the class; lower is better",
    "expected calibration error": "Mean difference of predicted probability and observed frequency",
    "r": "Pearson correlation of predicted and observed values over all held-out participants",
    "r within sites": "Pearson correlation within each site, averaged over sites",
    "R²": "Explained variance of held-out participants; below 0 if guessing their mean is better",
    "mean absolute error": "Mean absolute difference of predicted and observed values, in units of the target",
    "mean |r| of edges with FD": "Mean absolute correlation of an edge with framewise displacement (FD) over participants",
    "mean |r| by chance": "The same for permuted FD, with the range of 95 % of the permutations",
    "distance dependence of QC-FC": "Spearman correlation over edges of the correlation with FD and the distance between the parcels",
    "mean t": "Mean t statistic of all edges of a node or between two networks",
    "mean t²": "Mean squared t statistic, which also detects effects of opposite directions",
    "shift": "Predicted change of position towards the mean control",
    "recovery rate": "Shift divided by the patient's distance from the mean control",
    "conversion rate": "Share of patients who are moved from the patients' to the controls' side of the midpoint",
    "off-axis damage": "Root mean square change of the edges that is orthogonal to the group difference",
}


def explained(measures: Iterable[str]) -> list[tuple[str, str]]:
    """Return the distinct measures that have an explanation, with the explanations."""
    out = {}
    for measure in measures:
        if " minus " in measure:
            continue
        keys = [key for key in EXPLANATIONS if measure == key or measure.startswith((f"{key},", f"{key} "))]
        if keys:
            out[measure] = EXPLANATIONS[max(keys, key=len)]
    return list(out.items())
