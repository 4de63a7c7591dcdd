// llama.cpp by request: one JSON object per line on stdin, one answer per line on stdout.
//
// {model: FILE, context?, threads?, tokenize?: [TEXT], generate?: {tokens, count}, logprobs?: [TOKENS], speed?: {prompt, generated, rounds}}
// Answers: {tokens: [IDS], generated: IDS, logprobs: [NUMBERS], speed: {prompt, generation}, trained: context length}, or {error}.

import {createInterface} from "node:readline";
import {getLlama, LlamaLogLevel} from "node-llama-cpp";

const llama = await getLlama({build: "never", gpu: false, skipDownload: true, logLevel: LlamaLogLevel.error, logger: (_, text) => process.stderr.write(text + "\n")});

async function answer(request) {
    const model = await llama.loadModel({modelPath: request.model, useMmap: true, ignoreMemorySafetyChecks: true});
    try {
        const result = {};
        if (request.tokenize) result.tokens = request.tokenize.map((text) => model.tokenize(text, true));
        if (request.generate || request.logprobs || request.speed) {
            const longest = Math.max(...(request.logprobs ?? [[]]).map((ids) => ids.length), 256);
            const context = await model.createContext({
                contextSize: request.context ?? longest + 256, batchSize: request.batch ?? 512, threads: request.threads ?? 1,
                ...(request.exact ? {experimentalKvCacheKeyType: "F32", experimentalKvCacheValueType: "F32", flashAttention: false} : {})
            });
            const sequence = context.getSequence();
            if (request.generate) result.generated = await generated(sequence, request.generate);
            if (request.logprobs) {
                result.logprobs = [];
                for (const ids of request.logprobs) result.logprobs.push(await logprobs(sequence, ids));
            }
            if (request.speed) result.speed = await speed(sequence, request.speed);
            await context.dispose();
        }
        return result;
    } finally {
        await model.dispose();
    }
}

// Greedy continuation, token by token; end-of-text tokens count as any other.
async function generated(sequence, {tokens, count}) {
    await sequence.clearHistory();
    const made = [];
    let input = tokens;
    while (made.length < count) {
        const items = input.map((token, place) => place < input.length - 1 ? token : [token, {generateNext: {token: true, options: {temperature: 0}}}]);
        const output = await sequence.controlledEvaluate(items);
        const next = output[items.length - 1].next.token;
        made.push(next);
        input = [next];
    }
    return made;
}

// Log-probability of each token but the first, given those before it.
async function logprobs(sequence, ids) {
    await sequence.clearHistory();
    const items = ids.slice(0, -1).map((token, place) => [token, {generateNext: {
        totalLogitWeight: true, logits: {filter: {tokens: [ids[place + 1]], includeTop: 1}}
    }}]);
    const output = await sequence.controlledEvaluate(items);
    return items.map((_, place) => {
        const {logits, totalLogitWeight} = output[place].next;
        const values = [...logits.values()];
        return logits.get(ids[place + 1]) - Math.max(...values) - Math.log(totalLogitWeight);
    });
}

// Tokens per second of reading a prompt and of writing after it, one number per round; the first round warms up.
async function speed(sequence, {tokens, count, rounds}) {
    const prompt = [], generation = [];
    for (let round = 0; round <= rounds; round++) {
        await sequence.clearHistory();
        const began = performance.now();
        await sequence.evaluateWithoutGeneratingNewTokens(tokens.slice(0, -1));
        const read = performance.now();
        let input = [tokens.at(-1)];
        for (let written = 0; written < count; written++) {
            const output = await sequence.controlledEvaluate([[input[0], {generateNext: {token: true, options: {temperature: 0}}}]]);
            input = [output[0].next.token];
        }
        const ended = performance.now();
        if (round) {
            prompt.push((tokens.length - 1) * 1000 / (read - began));
            generation.push(count * 1000 / (ended - read));
        }
    }
    return {prompt, generation};
}

for await (const line of createInterface({input: process.stdin})) {
    let said;
    try {
        said = await answer(JSON.parse(line));
    } catch (error) {
        said = {error: String(error.message ?? error)};
    }
    process.stdout.write(JSON.stringify(said) + "\n");
}
process.exit(0);
