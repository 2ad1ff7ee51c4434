// What the scripted model says: by a word in the question, so that a test says what it wants.

const HEAT = `Reading weights, almost always. One token touches every active weight **once**, so a step takes at least

$$t_{\\text{step}} \\ge \\frac{\\sum_{\\ell} \\left(b_{\\text{attn}} + k \\cdot b_{\\text{expert}}\\right)}{B_{\\text{read}}}$$

where $k$ is the number of experts a token is routed to and $B_{\\text{read}}$ the bandwidth that was measured. For 37 B active parameters at 4.5 bits that is about 21 GB a token:

| memory | bandwidth | at best |
|:--|--:|--:|
| DDR5, 2 channels | 80 GB/s | 3.8 tokens/s |
| DDR5, 12 channels | 460 GB/s | 22 tokens/s |
| HBM3 | 3,350 GB/s | 160 tokens/s |

A loop to measure your own:

\`\`\`python
import numpy as np, time

def read_bandwidth(gigabytes: float = 2.0) -> float:
    """GB/s of one pass over an array that no cache holds."""
    data = np.ones(int(gigabytes * 2**30 // 8))
    start = time.perf_counter()
    data.sum()
    return data.nbytes / (time.perf_counter() - start) / 1e9
\`\`\`

Arithmetic matters for *prompts*, where one weight serves many tokens.`;

const HOSTILE = `Before <script>window.__hit = 1</script> <img src=x onerror="window.__hit = 2"> after.

<iframe src="javascript:window.__hit=3"></iframe>

[click](javascript:window.__hit=4) [spaced](java&#x0A;script:window.__hit=5) [data](data:text/html,<script>window.__hit=6</script>)

![pixel](https://tracker.example/pixel.png?q=secret) <https://safe.example/page>

$\\href{javascript:window.__hit=7}{x}$ $\\includegraphics{https://tracker.example/y.png}$ $\\htmlData{a=b}{c}$

\`\`\`html
<svg onload="window.__hit = 8">
\`\`\`

<style>body{background:url(https://tracker.example/z.png)}</style>
<svg><a xlink:href="javascript:window.__hit=9"><text>x</text></a></svg>`;

const text = (content) => content.match(/\s*\S+|\s+$/g).map((piece) => ({ content: piece }));
const thought = (content) => content.match(/\s*\S+/g).map((piece) => ({ reasoning_content: piece }));

function toolCall(name, args) {
  const pieces = JSON.stringify(args).match(/.{1,7}/gs);
  return [
    { tool_calls: [{ index: 0, id: "call_1", type: "function", function: { name, arguments: "" } }] },
    ...pieces.map((piece) => ({ tool_calls: [{ index: 0, function: { arguments: piece } }] })),
  ];
}

const STEPS = thought("The user wants to know which of the two is larger. Compare 9.9 with 9.11: the whole parts are equal, and 0.90 is more than 0.11.");

export function deltasFor({ messages, tools }) {
  const last = messages.at(-1);
  const asked = String(last.content);
  const answer = (deltas, finish = "stop", delay = 4) => ({ deltas, finish, delay });
  if (last.role === "tool") {
    return answer(text(`It is **18 °C** in Lisbon, clear, with a light wind from the north-west. The tool said \`${asked}\`.`));
  }
  if (tools?.length && /weather/i.test(asked)) {
    return answer([...text("I will look it up."), ...toolCall("get_weather", { city: "Lisbon", unit: "celsius", days: 1 })], "tool_calls");
  }
  if (/hostile/.test(asked)) return answer(text(HOSTILE));
  if (/larger/.test(asked)) return answer([...STEPS, ...text("9.9 is larger: 0.90 against 0.11.")], "stop", 12);
  if (/count slowly/.test(asked)) return answer(Array.from({ length: 2000 }, (_, i) => ({ content: `${i} ` })), "stop", 20);
  if (/slow/.test(asked)) return answer(text(HEAT), "stop", 2);
  if (/no end/.test(asked)) return answer(text("This answer is cut at its"), "length");
  return answer(text(`You said: ${asked}`));
}
