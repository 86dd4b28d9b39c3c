// Shows the pages of this pack's nodes in full width, and once.

import { api } from "../../../scripts/api.js"
import { app } from "../../../scripts/app.js"
import { locatorOf, nodeOf } from "./graph.js"

const PAGES = new Set(["UnHypeTrainErasure", "UnHypeErasureReport", "UnHypeEraseConcept"])
const HEIGHT = 400 // at least, of a page
const PREVIEW_HEIGHT = 220 // at least, of other pictures: ComfyUI's own
const PREVIEW = "$$canvas-image-preview" // ComfyUI's own widget for a node's pictures
const CAPTION = 24 // below a page in Nodes 2.0: its size in pixels

function isOurs(node) {
  return node?.comfyClass?.startsWith("UnHype")
}

/** The height at which a picture fills the width that a node has for it. */
function pageHeight(node, width, picture) {
  const least = PAGES.has(node.comfyClass) ? HEIGHT : PREVIEW_HEIGHT
  return Math.max((width * picture.naturalHeight) / picture.naturalWidth, least)
}

/** On the classic canvas: make a node tall enough for its page, which ComfyUI shows very small otherwise. */
function makeRoom(node) {
  const preview = node.widgets?.find((widget) => widget.name === PREVIEW)
  const picture = node.imgs?.[0]
  if (!preview || !picture?.naturalWidth || preview.shown === picture) return
  preview.shown = picture
  preview.computeLayoutSize = () => ({ minHeight: pageHeight(node, node.size[0], picture), minWidth: 1 })
  const height = node.computeSize()[1]
  if (height > node.size[1]) node.setSize([node.size[0], height])
}

/** In Nodes 2.0: give a picture that has just loaded the height for the node's width. */
function fitPage(picture) {
  const id = picture.closest("[data-node-id]")?.dataset.nodeId
  const node = id && (app.canvas.graph ?? app.graph)?.getNodeById(id)
  if (!isOurs(node) || !picture.naturalWidth) return
  const box = picture.closest(".image-preview")
  const height = Math.round(pageHeight(node, picture.offsetWidth, picture))
  if (box) box.style.height = `${height + CAPTION}px`
  else picture.style.minHeight = `${height}px` // a live preview
}

/** In Nodes 2.0: take the former page away when the first live preview of a new one comes. */
function dropPage({ detail }) {
  const node = LiteGraph.vueNodesMode && nodeOf(detail.displayNodeId)
  if (isOurs(node)) delete app.nodeOutputs[locatorOf(node)]
}

/** Drop a node's live preview: Nodes 2.0 would show it below the result, and in place of a page that comes later. */
function dropPreview(node) {
  // The interface has no call for it; its stores are the only way.
  app.extensionManager?._p?._s?.get("nodeOutput")?.revokePreviewsByLocatorId?.(locatorOf(node))
}

app.registerExtension({
  name: "unhype.Page",

  setup() {
    document.addEventListener("load", ({ target }) => target instanceof HTMLImageElement && fitPage(target), true)
    api.addEventListener("b_preview_with_metadata", dropPage)
  },

  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!nodeData.name.startsWith("UnHype")) return
    const onExecuted = nodeType.prototype.onExecuted
    nodeType.prototype.onExecuted = function (output) {
      onExecuted?.call(this, output)
      if (output?.images) dropPreview(this)
    }
  },

  nodeCreated(node) {
    if (!isOurs(node)) return
    const draw = node.onDrawBackground
    node.onDrawBackground = function (...given) {
      draw?.apply(this, given)
      makeRoom(this)
    }
  },
})
