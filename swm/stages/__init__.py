"""One file for each stage: read the experiment or run, call the engine, write the result.

- abilities: what each layer does, and what a run's model lost
- answer_plans: what the model of each plan writes after the sample prompts
- ask: models of several runs for a typed prompt
- control: the control of a healed run
- create: creates an experiment after checking its model and text
- demo: the demo: the whole pipeline on the bundled model
- evaluate: scores a run: perplexity, zero-shot tasks, samples
- first_look: what a new experiment shows first: its map, a plan, then all else
- healing_start: what a healing starts from: the merged model, its layers fitted where asked, and the examples
- loading: what several stages share: models, texts, measurement conditions
- measure: measures the similarity of an experiment's layers
- measure_plan: measures similarity and perplexity of any plan
- merge: merges a run's windows and saves the smaller model
- plan: the plan at a threshold or with a number of layers, searched if it is not on disk
- plan_by: a planner's plan, saved and reused
- plan_within: the smallest plan whose perplexity stays within a factor of the original's
- recover: heals a run with LoRA
- repeat: reproduces a run from its recipe
- run: one run from plan to scores; finished steps are skipped
- search: computes the threshold path of an experiment
- time: times a run, alternately with the original
- time_in_llama_cpp: the same in llama.cpp, as GGUF files
- without_attention: a run's model as a GGUF file in which some layers have no attention
"""
