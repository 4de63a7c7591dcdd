"""Home page: the verdict on the best run, three next steps, all runs."""

from pathlib import Path

import streamlit as st

from pages.shared.frame import command_line, shown_errors, start_page
from pages.shared.live import layers_picture
from pages.shared.navigation import next_step
from pages.shared.plain import plain
from pages.shared.tables import runs_table
from pages.shared.tour import offer_tour
from pages.shared.verdict import judged_rows, show_verdict
from pages.shared.words import show_words
from swm.disk.names import is_shipped
from swm.reporting.compare import compare, flat_rows
from swm.reporting.headline import headline, perplexity_ratio
from swm.reporting.names import row_name
from swm.reporting.preview import WITHIN
from swm.workspace.experiments import list_experiments

SMALL = 1000  # millions of parameters: smaller models say little that is right
DOORS = (
    (
        ":material/grid_on:",
        "See redundancy",
        "Which layers repeat each other? A map of all pairs, and what each layer changes.",
        "pages/redundancy.py",
        "Open the map",
        {},
    ),
    (
        ":material/compress:",
        "Make it fit, make it faster",
        "Name a size, a speed or a loss you can live with, and get the plan. Or tune the threshold yourself.",
        "pages/preview.py",
        "Choose a target",
        {"preview_door": "target"},
    ),
    (
        ":material/co_present:",
        "Show it to others",
        "The result on one page: what was removed, what it gained, what it cost, and how sure that is.",
        "pages/report.py",
        "Open the report",
        {},
    ),
)

experiment = start_page(
    "Sliding-Window Merging Studio",
    "See which layers of a language model are redundant, merge them, heal the smaller model and compare both.",
)

experiments, first_visit = [], False
with shown_errors():
    experiments, _ = list_experiments()
    first_visit = all(is_shipped(listed.folder) for listed in experiments)  # nothing of one's own yet
    if first_visit:
        offer_tour(experiments, "New here? ")
    rows = flat_rows(compare(experiment)) if experiment else []
    if experiment and len(rows) > 1:
        best = rows[headline(rows)]
        with st.container(border=True, key="verdict"):
            st.markdown(f":gray[{plain(Path(experiment.settings.model).name)} · {experiment.name}: {row_name(best)}]")
            show_verdict(judged_rows(experiment, [best])[0])
            plan = experiment.run(best.run).plan
            layers_picture(plan, experiment.model_facts, key="home_layers")
            show_words(rows[0], best)
            millions = experiment.model_facts["parameters"] / 1e6
            if rows[0].samples and millions < SMALL:
                st.caption(f"A model of {millions:,.0f} M parameters is often wrong before anything is removed.")
            next_step("pages/compare.py", "See all scores")
            if len(rows) > 2 and (ratio := perplexity_ratio(best, rows[0])):
                reason = (
                    f"the smallest model whose perplexity stays within {WITHIN} times that of the original as it is"
                    if ratio <= WITHIN
                    else f"the model that loses least: none stays within {WITHIN} times the original's perplexity"
                )
                st.caption(f"Shown: {reason} ({ratio:.2f} times, over all texts). All runs are in the table below.")

with st.container(key="doors"):
    for column, (icon, title, text, page, label, query) in zip(st.columns(3, gap="medium"), DOORS, strict=True):
        with column.container(border=True, height="stretch"):
            st.markdown(f"##### {icon} {title}")
            st.markdown(text)
            next_step(page, label, **query)
if not first_visit:
    offer_tour(experiments)

with shown_errors():
    st.subheader("Runs", anchor=False)
    table = runs_table(experiments)
    if table.empty:
        st.info("No runs yet. Create an experiment first.", icon=":material/science:")
        next_step("pages/experiment.py", "Create an experiment")
    else:
        st.dataframe(table, hide_index=True)
st.caption(
    "Sliding-Window Merging (arXiv:2502.19159): neighbouring layers often do nearly the same thing. A window slides "
    "from the top layer down and grows as long as merging its layers into one keeps the model's output similar enough "
    "to the original's. LoRA training then heals the smaller model."
)
command_line("list")
