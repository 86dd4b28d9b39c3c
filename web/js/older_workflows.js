// Puts what older workflows saved in its present place. ComfyUI saves the values of a node in the order of its fields:
// `preset` of Train Erasure was the last and is the first now. `sampler` of Erasure Report is `sampler_name` now.

import { app } from "../../../scripts/app.js"

const STEPS = 4 // where the older order has the number of steps, and the newer one the word of `kind`
const PRESET = 19

const MIGRATIONS = {
  UnHypeTrainErasure(node) {
    const values = node.widgets_values
    if (!Array.isArray(values) || typeof values[STEPS] !== "number") return node
    return { ...node, widgets_values: [values[PRESET] ?? "custom", ...values.slice(0, PRESET)] }
  },

  UnHypeErasureReport(node) {
    const rename = (input) =>
      input.name === "sampler" ? { ...input, name: "sampler_name", widget: { name: "sampler_name" } } : input
    return { ...node, inputs: node.inputs?.map(rename) }
  },
}

app.registerExtension({
  name: "unhype.OlderWorkflows",

  beforeRegisterNodeDef(nodeType, nodeData) {
    const migrate = MIGRATIONS[nodeData.name]
    if (!migrate) return
    const configure = nodeType.prototype.configure
    nodeType.prototype.configure = function (saved) {
      return configure.call(this, migrate(saved))
    }
  },
})
