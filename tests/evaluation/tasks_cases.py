"""What several tests of evaluation start from."""

from lm_eval.models.huggingface import HFLM

from tests.conftest import WORDS


def requests(tokenizer, model):
    """Questions with several choices: shared contexts, one-token and long continuations, an odd one alone."""
    lm = HFLM(pretrained=model, tokenizer=tokenizer)
    contexts = [WORDS[i : i + 90] for i in (0, 11, 40)] + [WORDS[:30]]
    choices = [[" yes", " no"], [" a", " many years ago , they say", " b"], [" to sleep", " to see"], [" river"]]
    pairs = [(c, choice) for c, group in zip(contexts, choices, strict=True) for choice in group]
    pairs += [("", "the old house"), (WORDS * 4, " night")]  # no context; longer than the model reads
    return [((c, choice), *(lm._encode_pair(c, choice) if c else ([0], lm.tok_encode(choice)))) for c, choice in pairs]
