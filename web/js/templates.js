// Shows the cards of this pack's templates in their order: the server lists them as the disk has them.

import { api } from "../../../scripts/api.js"
import { app } from "../../../scripts/app.js"

// The pack's own folder in custom_nodes, whatever people call it.
const PACK = decodeURIComponent(new URL(import.meta.url).pathname.split("/extensions/")[1].split("/")[0])

app.registerExtension({
  name: "unhype.Templates",

  setup() {
    const list = api.getWorkflowTemplates
    api.getWorkflowTemplates = async function (...given) {
      const templates = await list.apply(this, given)
      templates[PACK]?.sort()
      return templates
    }
  },
})
