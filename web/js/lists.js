// A file that Train Erasure or Import UnHype Weights has just written is in the lists at once, without the key R.

import { api } from "../../../scripts/api.js"
import { app } from "../../../scripts/app.js"

app.registerExtension({
  name: "unhype.Lists",

  setup() {
    // Older interfaces have only what the key R does, with a message.
    api.addEventListener("unhype.lists", () => (app.reloadNodeDefs ? app.reloadNodeDefs() : app.refreshComboInNodes()))
  },
})
