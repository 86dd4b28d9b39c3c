// Choosing a preset in Train Erasure fills the node's fields with its lists, where people see and change them.
// The lists come from the server with the node's inputs; "custom" brings back the previous text.

import { app } from "../../../scripts/app.js"

const NODE = "UnHypeTrainErasure"
const FIELDS = ["concepts", "preserve", "kind"]

function widgetOf(node, name) {
  return node.widgets?.find((widget) => widget.name === name)
}

function read(node) {
  return Object.fromEntries(FIELDS.map((name) => [name, widgetOf(node, name)?.value]))
}

function write(node, values) {
  for (const [name, value] of Object.entries(values)) {
    const widget = widgetOf(node, name)
    if (widget) widget.value = value
  }
  node.setDirtyCanvas?.(true, true)
}

/** Whether the fields hold the user's own text, and not an unchanged preset. */
function isOwn(values, presets) {
  return !Object.values(presets).some((preset) => FIELDS.every((name) => preset[name] === values[name]))
}

app.registerExtension({
  name: "unhype.Presets",

  nodeCreated(node) {
    if (node.comfyClass !== NODE) return
    const input = node.constructor.nodeData?.input?.optional?.preset
    const presets = input?.[1]?.presets
    const choice = widgetOf(node, "preset")
    if (!presets || !choice) return
    let own = null
    const callback = choice.callback
    // Only a person's choice comes here: a workflow that is opened sets values without it.
    choice.callback = function (chosen, ...rest) {
      const now = read(node)
      if (isOwn(now, presets)) own = now
      if (presets[chosen]) write(node, presets[chosen])
      else if (own) write(node, own)
      return callback?.call(this, chosen, ...rest)
    }
  },
})
