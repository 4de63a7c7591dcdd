"""Home page: the best run in a picture and a sentence, four next steps, all runs."""

from pathlib import Path

import streamlit as st

from pages.shared.frame import command_line, shown_errors, start_page, steps_done
from pages.shared.live import layers_picture
from pages.shared.navigation import next_step
from pages.shared.plain import plain
from pages.shared.tables import runs_table
from pages.shared.tour import offer_tour
from pages.shared.verdict import judged_rows, show_figures, show_verdict
from pages.shared.words import show_words
from swm.disk.names import is_shipped
from swm.reporting.compare import compare, flat_rows
from swm.reporting.headline import headline, perplexity_ratio
from swm.reporting.key_figures import key_figures
from swm.reporting.known_plans import chosen_sentence
from swm.reporting.names import row_name
from swm.reporting.preview import WITHIN
from swm.reporting.row import Row
from swm.reporting.seeds import over_seeds
from swm.workspace.experiments import Experiment, list_experiments

SMALL = 1e9  # parameters: smaller models say little that is right
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
    (
        ":material/upload_file:",
        "Use your own model",
        "A folder, a GGUF file or a name on the Hugging Face hub. The first map takes less than a minute.",
        "pages/experiment.py",
        "Choose a model",
        {},
    ),
)


def show_best(experiment: Experiment, rows: list[Row]) -> None:
    """The best run in one card: its layers, a sentence, three figures, what chose its layers, and its words."""
    best = judged_rows(experiment, [rows[headline(rows)]])[0]
    plan, facts = experiment.run(best.run).plan, experiment.model_facts
    ratio = perplexity_ratio(best, rows[0])
    reason = (
        f"Shown: the {'smallest model' if ratio <= WITHIN else 'model that loses least; none stays'} within {WITHIN} "
        f"times the original's perplexity ({ratio:.2f} times, over all texts)."
        if len(rows) > 2 and ratio
        else None
    )
    with st.container(border=True, key="verdict"):
        model = plain(Path(experiment.settings.model).name)
        st.markdown(f":gray[{model} · {experiment.name}: {row_name(best)}]", help=reason)
        layers_picture(plan, facts, key="home_layers")
        show_verdict(best)
        figures = key_figures(best)
        show_figures([figures[name] for name in ("speed", "size", "perplexity")])
        brackets = "Brackets are 95 % intervals. " if best.compared_with else ""
        st.caption(plain(f"{brackets}{chosen_sentence(experiment, plan)}"))
        show_words(rows[0], best)
        if rows[0].samples and facts["parameters"] < SMALL:
            millions = facts["parameters"] / 1e6
            st.caption(f"A model of {millions:,.0f} M parameters is often wrong before anything is removed.")
        next_step("pages/compare.py", "See all scores")


def what_is_left(experiment: Experiment) -> tuple[str, str, str] | None:
    """The next step of an experiment: its page, the link's label, and what is there; None once a run is evaluated."""
    done = steps_done(experiment)
    if done["Compare"]:
        return None
    if done["Run"]:
        return "pages/run.py", "Evaluate it", "A smaller model is merged. Next: measure what it lost."
    if done["Preview"]:
        return "pages/preview.py", "Choose layers", "Plans are there. Next: choose one and merge it."
    if done["Redundancy"]:
        return "pages/preview.py", "Search a plan", "Its map is there. Next: find out which windows would merge."
    return "pages/redundancy.py", "Measure it", "Nothing is measured yet. Next: which layers are alike?"


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
    rows = [row for row, _ in over_seeds(experiment, flat_rows(compare(experiment)))] if experiment else []
    if experiment and len(rows) > 1:
        show_best(experiment, rows)
    if experiment and not is_shipped(experiment.folder) and (left := what_is_left(experiment)):
        page, label, text = left
        with st.container(border=True, horizontal=True, vertical_alignment="center", key="home_next"):
            st.markdown(f"**{plain(experiment.name)}** · {text}", width="content")
            next_step(page, label)

with st.container(key="doors"):
    columns = st.columns(len(DOORS), gap="small")
    for column, (icon, title, text, page, label, query) in zip(columns, DOORS, strict=True):
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
