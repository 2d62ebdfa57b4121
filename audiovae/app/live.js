// The microphone to the server of this page, block by block, and what comes back to the loudspeaker.
// `element` is the page's part of it, and `trigger` tells Python that it ended.

const BLOCK_SECONDS = 0.02
const AHEAD_SECONDS = 0.04 // of answers that wait before they are played, so that a late one leaves no gap
const LATE_SECONDS = 0.4 // of them, of which all but those above are left out
const MOST_AT_ONCE = 10 // blocks in a request
const MOST_WAITING = 250 // blocks that are not sent yet

// Runs beside the page. Every sample that is heard is answered by one: their difference is the time on the way.
const WORKLET = `
class Way extends AudioWorkletProcessor {
  constructor({processorOptions: {block, ahead, late}}) {
    super()
    Object.assign(this, {block: new Float32Array(block), ahead, late})
    Object.assign(this, {filled: 0, ready: [], waiting: 0, heard: 0, played: 0, playing: false, hear: "speech"})
    this.port.onmessage = ({data}) => {
      if (data.hear) { this.hear = data.hear; return }
      this.ready.push(data)
      this.waiting += data.length
      if (this.waiting >= this.ahead) this.playing = true
      if (this.waiting > this.late) while (this.waiting > this.ahead) this.take()
    }
  }
  take() {
    if (!this.waiting) return 0
    const first = this.ready[0], sample = first[0]
    if (first.length > 1) this.ready[0] = first.subarray(1)
    else this.ready.shift()
    this.waiting -= 1
    this.played += 1
    return sample
  }
  process([[input]], [[output]]) {
    if (input) for (const sample of input) {
      this.block[this.filled++] = sample
      if (this.filled === this.block.length) {
        this.heard += this.filled
        this.filled = 0
        this.port.postMessage({block: this.block.slice(), behind: this.heard - this.played})
      }
    }
    if (this.playing && !this.waiting) this.playing = false
    for (let i = 0; i < output.length; i++) {
      const speech = this.playing ? this.take() : 0
      output[i] = this.hear === "speech" ? speech : this.hear === "microphone" && input ? input[i] : 0
    }
    return true
  }
}
registerProcessor("way", Way)
`

const part = name => element.querySelector("#live-" + name)
const tell = text => { part("told").textContent = text }
let running = null

async function ask(path, body) {
  const answer = await fetch("/live" + path, {method: "POST", body})
  if (!answer.ok) throw new Error(await answer.text())
  return answer
}

async function start() {
  part("start").disabled = true
  tell("Asking for the microphone.")
  const now = running = {blocks: [], busy: false, ended: false, latency: 0}
  try {
    const raw = {echoCancellation: false, noiseSuppression: false, autoGainControl: false, channelCount: 1}
    now.microphone = await navigator.mediaDevices.getUserMedia({audio: raw})
    const context = now.context = new AudioContext({latencyHint: "interactive"})
    const samples = seconds => Math.round(seconds * context.sampleRate)
    const source = URL.createObjectURL(new Blob([WORKLET], {type: "text/javascript"}))
    await context.audioWorklet.addModule(source)
    URL.revokeObjectURL(source)
    const processorOptions = {
      block: samples(BLOCK_SECONDS), ahead: samples(AHEAD_SECONDS), late: samples(LATE_SECONDS)
    }
    now.way = new AudioWorkletNode(context, "way", {processorOptions, outputChannelCount: [1]})
    now.way.port.postMessage({hear: part("hear").value})
    now.way.port.onmessage = ({data}) => {
      if (now.ended) return
      now.blocks.push(data.block)
      now.ended = now.tooSlow = now.blocks.length > MOST_WAITING
      send(now)
      const device = 1000 * (context.baseLatency + (context.outputLatency || 0))
      const onTheWay = Math.round(1000 * data.behind / context.sampleRate + device)
      tell(`Latency ${Math.round(now.latency) + onTheWay} ms: ${now.latency.toFixed(1)} ms of the method, ` +
        `${onTheWay} ms of blocks, buffers and the sound card.`)
    }
    const asked = {sample_rate: context.sampleRate, lookahead: Number(part("lookahead").value)}
    const answer = await (await ask("", JSON.stringify(asked))).json()
    now.name = answer.name
    now.latency = answer.latency_ms
    context.createMediaStreamSource(now.microphone).connect(now.way).connect(context.destination)
    part("stop").disabled = false
  } catch (error) {
    finish(now, `This does not work: ${error.message}.`)
  }
}

// One request at a time, with what was heard since the one before.
async function send(now) {
  if (now.busy) return
  now.busy = true
  try {
    while (now.blocks.length) {
      const answer = await ask("/" + now.name, new Blob(now.blocks.splice(0, MOST_AT_ONCE)))
      now.way.port.postMessage(new Float32Array(await answer.arrayBuffer()))
    }
  } catch (error) {
    finish(now, `The microphone is off: ${error.message}.`)
  }
  now.busy = false
  if (now.ended) finish(now)
}

function finish(now, failure) {
  if (running !== now) return
  running = null
  now.ended = true
  now.microphone?.getTracks().forEach(track => track.stop())
  now.context?.close()
  part("start").disabled = false
  part("stop").disabled = true
  const why = now.tooSlow ? "This machine is too busy to keep up, so it stopped" : "Stopped"
  tell(failure || `${why}; the last minute is below.`)
  if (!failure) trigger("submit", {name: now.name})
}

part("start").addEventListener("click", start)
part("stop").addEventListener("click", () => {
  part("stop").disabled = true
  running.ended = true
  if (!running.busy) finish(running)
})
part("hear").addEventListener("change", event => running?.way?.port.postMessage({hear: event.target.value}))
