"""Playground page: one prompt, up to three models; answers recorded at evaluation, or live from a child process."""

import streamlit as st

from pages.shared.choices import named_choice
from pages.shared.fields import number
from pages.shared.frame import command_line, require_experiment, shown_errors, start_page
from pages.shared.navigation import next_step
from pages.shared.plain import plain
from pages.shared.words import marked, model_heading
from swm.disk.files import demo_experiment
from swm.jobs.child import stream_answers
from swm.models.known import is_bundled_here
from swm.plan import DEFAULT_RULE
from swm.reporting.abilities import lost_words
from swm.reporting.compare import compare, flat_rows
from swm.reporting.headline import headline
from swm.reporting.names import row_name
from swm.reporting.palette import model_colours, row_colours
from swm.reporting.row import Row
from swm.reporting.seeds import SEED
from swm.settings import SAMPLE_PROMPTS
from swm.workspace.experiments import Experiment
from swm.workspace.runs import BASELINE

PROMPTS = (
    *SAMPLE_PROMPTS,
    "The three most important inventions of the last century are",
)
MAX_MODELS = 3
MODES = {"live": "live", "recorded": "recorded"}


def show_recorded(experiment: Experiment, rows: list[Row]) -> None:
    """Answers that the models gave when they were evaluated."""
    answers = {row_name(row): {sample["prompt"]: sample["answer"] for sample in row.samples} for row in rows}
    by_name = {row_name(row): row for row in rows}
    colours = {row_name(row): colour for row, colour in zip(rows, row_colours(rows, paler=False), strict=True)}
    prompts = list(dict.fromkeys(prompt for known in answers.values() for prompt in known))
    prompt = st.pills(
        "Prompt",
        prompts,
        default=prompts[0],
        required=True,
        key=f"playground_pill_{experiment.name}",
        bind="query-params",
    )
    names = list(answers)
    control = next((row_name(row) for row in rows if row.control), names[0])
    usual = list(dict.fromkeys([names[0], row_name(rows[headline(rows)]), control]))
    chosen = st.multiselect(
        "Models",
        names,
        default=usual[:MAX_MODELS],
        max_selections=MAX_MODELS,
        key=f"playground_recorded_{experiment.name}",
        bind="query-params",
    )
    original = answers[names[0]].get(prompt)
    for column, name in zip(st.columns(max(1, len(chosen)), gap="medium"), chosen, strict=False):
        with column.container(border=True, height="stretch"):
            model_heading(name, colours[name])
            st.caption(f"{by_name[name].layers} of {experiment.layer_count} layers")
            answer = answers[name].get(prompt)
            if answer is None:
                st.caption("No answer was recorded.")
            else:
                st.markdown(marked(answer, None if name == names[0] else original))
            if said := lost_words(by_name[name]):
                st.caption(plain(said))
    st.caption(
        "Recorded when each model was evaluated: always the most likely next token, without a chat template. Marked "
        "from the first word that differs from the original's answer."
    )


def show_live(experiment: Experiment, usable: list[str], rows: list[Row]) -> None:
    """Answers streamed from models loaded one after another."""
    example = st.selectbox("Example prompt", PROMPTS, key="playground_example", help="Edit it, or write your own.")
    prompt = st.text_area("Prompt", example, key=f"playground_prompt_{PROMPTS.index(example)}", max_chars=20_000)
    left, right = st.columns([3, 1], gap="large")
    names = left.multiselect(
        "Models",
        usable,
        default=usual_models(experiment, usable, rows),
        max_selections=MAX_MODELS,
        format_func=lambda name: model_title(experiment, name),
        key="playground_models",
        bind="query-params",
        help=f"Up to {MAX_MODELS}. They answer one after another, so that each is timed alone. Models that are not "
        "saved are merged in memory, before healing.",
    )
    tokens = number(
        "Max. new tokens",
        1,
        1000,
        48,
        place=right,
        key="playground_tokens",
        bind="query-params",
        help="Decoding is greedy.",
    )
    clicked = st.button("Answer", type="primary", disabled=not (prompt.strip() and names), key="playground_go")
    if not (prompt.strip() and names):
        st.caption("Write a prompt and choose a model first.")
    if clicked:
        answer_live(experiment, names, prompt, int(tokens))
    if names:
        command_line("answer", experiment.name, *names, "--prompt", prompt, "--tokens", str(tokens))


def answer_live(experiment: Experiment, names: list[str], prompt: str, tokens: int) -> None:
    """Stream each model's answer into its column, then mark where it leaves the original's."""
    colours = model_colours(experiment)
    places, whole, original = [], [""] * len(names), None
    for column, name in zip(st.columns(len(names), gap="medium"), names, strict=True):
        with column.container(border=True, height="stretch"):
            model_heading(model_title(experiment, name), colours[name])
            places.append((st.empty(), st.empty()))
    with shown_errors(), st.spinner("Loading the model", show_time=True):
        for at, piece, is_speed in stream_answers(experiment.name, names, prompt, tokens):
            if is_speed:
                original = whole[at] if names[at] == BASELINE else original
                places[at][0].markdown(marked(whole[at], None if names[at] == BASELINE else original))
                places[at][1].caption(piece)
            else:
                whole[at] += piece
                places[at][0].markdown(plain(whole[at]))


def askable(experiment: Experiment) -> list[str]:
    """The runs that can answer a typed prompt here: with a model, or of an example whose original is installed, merged
    in memory."""
    runs = experiment.runs()
    if not experiment.fixed:
        return [run.name for run in runs if run.is_baseline or run.has_model]
    if demo_experiment() or not is_bundled_here(experiment.settings.model):
        return []
    return [run.name for run in runs if not run.is_control and not run.plan.width.ratio and SEED not in run.name]


def usual_models(experiment: Experiment, usable: list[str], rows: list[Row]) -> list[str]:
    """The original and the newest; of an example the original, the paper's method and the best with as many layers."""
    if not experiment.fixed or not rows:
        return list(dict.fromkeys([usable[0], usable[-1]]))
    best = rows[headline(rows)]
    deep = [row.run for row in rows if row.layers == best.layers and row.chosen_by == DEFAULT_RULE]
    return [name for name in dict.fromkeys([BASELINE, *deep[:1], best.run]) if name in usable]


def model_title(experiment: Experiment, name: str) -> str:
    """A run's name with its layers and stage."""
    run = experiment.run(name)
    healed = {"merged": ", not healed", "recovered": ", healed"}.get(run.stage, "")
    healed = healed if run.has_model or run.is_baseline else ", before healing"
    title = "original" if run.is_baseline else name
    return f"{title}: {run.plan.layers_left} of {experiment.layer_count} layers{healed}"


experiment = require_experiment(start_page("Playground", "See how up to three models continue the same prompt."))
with shown_errors():
    usable = askable(experiment)
    rows = [row for row in flat_rows(compare(experiment)) if row.samples]
    ready = (("recorded", rows), ("live", usable)) if experiment.fixed else (("live", usable), ("recorded", rows))
    modes = {mode: MODES[mode] for mode, there in ready if there}
    if len(modes) > 1:
        mode = named_choice(st.segmented_control, "Answers", modes, "playground_mode", required=True)
    else:
        mode = next(iter(modes), "")
    if mode == "live":
        show_live(experiment, usable, rows)
    elif mode == "recorded":
        show_recorded(experiment, rows)
        if experiment.fixed:
            st.caption("This example ships without healed weights. `python -m swm demo` repeats it with weights.")
    else:
        st.info("No model has answered yet. Evaluate a run first.", icon=":material/science:")
        next_step("pages/run.py", "Evaluate a run")
next_step("pages/report.py", "Create the report")
