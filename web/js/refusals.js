// Shows why a server with a policy refuses a graph. The interface's own note about a node that failed has the sentence
// behind a button.

import { api } from "../../../scripts/api.js"
import { app } from "../../../scripts/app.js"

app.registerExtension({
  name: "unhype.Refusals",

  setup() {
    api.addEventListener("execution_error", ({ detail }) => {
      if (detail.exception_type !== "unhype.PolicyError") return
      const message = { severity: "warn", summary: "Refused by this server", detail: detail.exception_message.trim() }
      app.extensionManager?.toast?.add(message)
    })
  },
})
