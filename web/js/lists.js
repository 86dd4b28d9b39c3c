// Adds a new file of Train Erasure or Import UnHype Weights to the lists at once, without the key R.

import { api } from "../../../scripts/api.js"
import { app } from "../../../scripts/app.js"

app.registerExtension({
  name: "unhype.Lists",

  setup() {
    // Older interfaces have only the function behind the key R, which shows a message.
    api.addEventListener("unhype.lists", () => (app.reloadNodeDefs ? app.reloadNodeDefs() : app.refreshComboInNodes()))
  },
})
