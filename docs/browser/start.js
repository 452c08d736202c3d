// A plain script, which runs from file:// too, where browsers refuse modules, fetch and WebAssembly.

(() => {
  const base = document.currentScript.src;
  const say = (text) => {
    const note = document.querySelector("#pad-note");
    note.textContent = text;
    note.hidden = false;
  };
  if (location.protocol === "file:") {
    say(
      "This page was opened as a file, and browsers do not let files load a model. Serve the folder instead: run " +
        "`python -m http.server` in it and open the address that it prints.",
    );
    return;
  }
  import(new URL("pad.js", base)).then(
    ({ pad }) => pad.start().catch((error) => say(`The model could not be loaded: ${error.message}`)),
    (error) => say(`The drawing pad needs a browser with JavaScript modules: ${error.message}`),
  );
})();
