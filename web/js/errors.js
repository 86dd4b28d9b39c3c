// Shows this pack's own sentence when something can't be done: newer interfaces say only that a node failed, and leave
// the reason to a panel. It names the node, the input and the way out.

import { api } from "../../../scripts/api.js"
import { app } from "../../../scripts/app.js"

const LIFE = 30_000 // milliseconds: long enough to read two sentences and to act on them

function show(sentence) {
  app.extensionManager?.toast?.add({ severity: "error", summary: "UnHype", detail: sentence, life: LIFE })
}

/** The sentences with which the server refused nodes of this pack: it puts the input's name and a dash in front. */
function refusals(answer) {
  const nodes = Object.values(answer?.node_errors ?? {}).filter((node) => node.class_type?.startsWith("UnHype"))
  const errors = nodes.flatMap((node) => node.errors).filter((error) => error.type === "custom_validation_failed")
  return new Set(errors.map((error) => error.details.replace(/^\w+ - /, "")))
}

app.registerExtension({
  name: "unhype.Errors",

  setup() {
    api.addEventListener("execution_error", ({ detail }) => {
      const ours = detail.node_type?.startsWith("UnHype") || detail.exception_type?.startsWith("unhype.")
      if (ours) show(detail.exception_message)
    })
    const queue = api.queuePrompt
    api.queuePrompt = async function (...given) {
      try {
        const answer = await queue.apply(this, given)
        refusals(answer).forEach(show) // the rest of the graph runs
        return answer
      } catch (error) {
        refusals(error.response).forEach(show)
        throw error
      }
    }
  },
})
