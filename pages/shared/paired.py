"""Whether two models differ: their answers to the same documents, task by task."""

from __future__ import annotations

import streamlit as st

from pages.shared.choices import named_choice
from pages.shared.frame import shown_errors
from pages.shared.tables import paired_table
from swm.evaluation.paired import SCORES, flipped, paired
from swm.reporting.compare import documents_of
from swm.reporting.compare_charts import differences_chart
from swm.reporting.glossary import TITLES, help_for
from swm.reporting.names import row_name
from swm.reporting.row import Row
from swm.workspace.runs import BASELINE

ALONE = "Two models with one training each. The verdict above also counts the spread over training seeds."
TESTS = {
    "accuracy": "exact McNemar test, which takes the number of changed answers as given",
    "choice_logprob": "t test",
    "bits_per_byte": "t test",
}


def show_paired(rows: list[Row], best: Row, several: bool) -> None:
    """The choice of two models and a score, the differences with their intervals, and the changed answers.

    Args:
        rows: with answers, as from `flat_rows`: each training alone. best: the one to begin with.
        several: of several experiments, so that names need theirs.
    """
    scored = {f"{row.experiment}: {row_name(row)}" if several else row_name(row): row for row in rows}
    st.subheader("Two models, document by document", anchor=False, help=ALONE if len(best.seeds) > 1 else None)
    ends = st.columns(2, gap="large")
    first = ends[0].selectbox(
        "From",
        list(scored),
        index=_reference(rows, best),
        key="compare_first",
        bind="query-params",
        help="The original, or for a healed model its control.",
    )
    second = ends[1].selectbox(
        "To",
        list(scored),
        index=next((i for i, row in enumerate(rows) if row.key == best.key), 0),
        key="compare_second",
        bind="query-params",
        help="A merged model.",
    )
    ends = st.columns(2, gap="large", vertical_alignment="bottom")
    titles, meanings = {score: TITLES[score] for score in SCORES}, help_for(*SCORES)
    score = named_choice(ends[0].segmented_control, "Score", titles, "compare_score", required=True, help=meanings)
    above = scored[first].tasks_above_chance
    only_above = ends[1].toggle(
        f"Only the {len(above)} tasks above chance" if above else "Only tasks above chance: none",
        key="compare_above",
        bind="query-params",
        disabled=not above,
        help=f"{', '.join(above) or 'None'}: tasks whose accuracy interval, for the original, lies above that of "
        "guessing. On the others, differences between models are mostly noise. They were chosen by the original's own "
        "answers, which favours it slightly.",
    )
    with shown_errors():
        before, after = documents_of(scored[first]), documents_of(scored[second])
    compared = paired(before, after, score, above if only_above and above else None)
    if not compared:
        st.info(
            "These two have no evaluated documents with this score in common. Evaluate both again with the same number "
            "of documents."
        )
        return
    left, right = st.columns([2, 5], gap="large", vertical_alignment="center")
    left.plotly_chart(differences_chart(compared), key="compare_differences")
    right.dataframe(paired_table(compared), hide_index=True)
    st.caption(
        "Both models answered the same documents. p is the probability of a difference at least this large if the "
        f"models were equally good ({TESTS[score]}; normal approximation for the average). The interval comes from the "
        f"same test. One comparison in twenty falls below p = 0.05 by chance alone. {ALONE * (len(best.seeds) > 1)}"
    )
    changed = flipped(before, after)
    names = {"first": first, "second": second, "question": st.column_config.TextColumn(width="large")}
    with st.expander(f"Documents that only one of the two models answers correctly ({len(changed)})"):
        st.dataframe(changed, hide_index=True, column_config=names)


def _reference(rows: list[Row], best: Row) -> int:
    """The place of the control of the best model, if it has one; otherwise of its original."""
    by_run = {(row.experiment, row.run): place for place, row in enumerate(rows)}
    own = by_run.get((best.experiment, BASELINE), 0)
    return by_run.get((best.experiment, best.control_run or ""), own)
