// Hands what the microphone gives to the page, block by block, as it is.
registerProcessor("capture", class extends AudioWorkletProcessor {
  process([channels]) {
    if (channels.length) this.port.postMessage(channels[0].slice());
    return true;
  }
});
