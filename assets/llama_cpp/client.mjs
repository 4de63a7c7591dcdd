// llama.cpp by request: one JSON object per line on stdin, one answer per line on stdout.
//
// Request: {model: FILE, threads?, exact?, tokenize?: [TEXT], generate?: {tokens, count}, logprobs?: [IDS],
// speed?: {tokens, count}}. Answer: {tokens: [IDS], generated: IDS, logprobs: [NUMBERS], speed: {prompt, generation}},
// each where it was asked for; or {error}. With `exact`, keys and values are kept in 32 bits instead of 16.

import {createInterface} from "node:readline";
import {getLlama, LlamaLogLevel} from "node-llama-cpp";

const logged = {logLevel: LlamaLogLevel.error, logger: (_, text) => process.stderr.write(text + "\n")};
const llama = await getLlama({build: "never", gpu: false, skipDownload: true, ...logged});
const EXACT = {experimentalKvCacheKeyType: "F32", experimentalKvCacheValueType: "F32", flashAttention: false};
const GREEDY = {generateNext: {token: true, options: {temperature: 0}}};

async function answer(request) {
    const model = await llama.loadModel({modelPath: request.model, useMmap: true, ignoreMemorySafetyChecks: true});
    try {
        const result = {};
        if (request.tokenize) result.tokens = request.tokenize.map((text) => model.tokenize(text, true));
        if (request.generate || request.logprobs || request.speed) {
            const lengths = (request.logprobs ?? []).map((ids) => ids.length);
            const asked = [request.generate, request.speed].map((one) => one ? one.tokens.length + one.count : 0);
            const context = await model.createContext({
                contextSize: Math.max(256, ...lengths, ...asked) + 1,
                batchSize: 512,
                threads: request.threads ?? 1,
                ...(request.exact ? EXACT : {}),
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
    if (tokens.length > 1) await sequence.evaluateWithoutGeneratingNewTokens(tokens.slice(0, -1));
    return continued(sequence, tokens.at(-1), count);
}

async function continued(sequence, token, count) {
    const made = [];
    while (made.length < count) {
        const output = await sequence.controlledEvaluate([[token, GREEDY]]);
        token = output[0].next.token;
        made.push(token);
    }
    return made;
}

// Log-probability of each token but the first, given those before it.
async function logprobs(sequence, ids) {
    await sequence.clearHistory();
    const items = ids.slice(0, -1).map((token, place) => [token, {generateNext: {
        totalLogitWeight: true, logits: {filter: {tokens: [ids[place + 1]], includeTop: 1}},
    }}]);
    const output = await sequence.controlledEvaluate(items);
    return items.map((_, place) => {
        const {logits, totalLogitWeight} = output[place].next;
        return logits.get(ids[place + 1]) - Math.max(...logits.values()) - Math.log(totalLogitWeight);
    });
}

// Tokens per second of reading a prompt and of writing after it; the first of two rounds warms up.
async function speed(sequence, {tokens, count}) {
    let result;
    for (let round = 0; round < 2; round++) {
        await sequence.clearHistory();
        const began = performance.now();
        await sequence.evaluateWithoutGeneratingNewTokens(tokens.slice(0, -1));
        const read = performance.now();
        await continued(sequence, tokens.at(-1), count);
        const ended = performance.now();
        result = {prompt: (tokens.length - 1) * 1000 / (read - began), generation: count * 1000 / (ended - read)};
    }
    return result;
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
