"""Scores and speed of a model: zero-shot tasks (lm_eval), perplexity, generation.

- ability_scores: how well a model answers requests, as a whole and without one of its layers
- answers: streams a model's answer to a prompt, and reports its speed
- cost: how the time per generated token splits between the layers and the rest
- generation: greedy generation token by token, and whether a model can generate at all
- kept_abilities: abilities that a plan is judged by, in place of perplexity
- packs: requests as batches of tokens, in which a common beginning is computed once
- paired: compares two models on the same documents: difference, interval, test, flipped answers
- perplexity: perplexity of texts, with its interval
- shared_context: an lm-eval model that computes the shared context of a question's choices once
- speed: latency, throughput and memory of generation, models timed in turn
- task_names: the zero-shot tasks by name; imports no lm_eval
- task_score: the score of one task, from lm-eval's results
- token_tree: texts with shared beginnings as a tree of tokens
- tasks: zero-shot tasks, through lm-eval
"""
