"""Scores and speed of a model: zero-shot tasks (lm_eval), perplexity, generation.

- answers: a model's answer to a prompt, piece by piece, and its speed
- cost: where the time of a generated token goes: in the layers, and in everything else
- generation: greedy generation token by token, and whether a model can generate at all
- paired: two models over the same documents: difference, interval, test, flipped answers
- peak_memory: the most memory that a block of code takes beyond what was in use before
- perplexity: perplexity of texts, with its interval
- shared_context: an lm-eval model that reads what the choices of a question share once
- speed: latency, throughput and memory of generation, two models timed in turn
- task_names: the zero-shot tasks by name; no lm_eval
- task_score: the score of one task, from what lm-eval returns
- tasks: zero-shot tasks, through lm-eval
"""
