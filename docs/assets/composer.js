// Composes a stack from the grid that the planner filled; nothing leaves the page. Off the grid it prints the command.
"use strict";
(() => {
  const gib = bytes => bytes >= 2 ** 30 ? `${(bytes / 2 ** 30).toPrecision(3)} GiB` : `${(bytes / 2 ** 20).toPrecision(3)} MiB`;

  function compose(grid, shape, device, picks) {
    const ref = slot => {
      const plugin = picks[slot] || grid.baseline[slot];
      return { use: plugin, ...(grid.options[plugin] || {}) };
    };
    const model = { use: grid.baseline.model, checkpoint: shape };
    for (const slot of grid.model_slots) if (picks[slot]) model[slot] = ref(slot);
    const taken = new Set(["model", ...grid.model_slots]);
    const homes = grid.stages.flatMap(stage => stage.slots.map(([, slot]) => slot)).filter(slot => !taken.has(slot) && slot !== "data");
    const fallback = homes.some(slot => picks[slot]) ? "" : picks.data && Object.keys(picks).length === 1 ? "train" : "evaluate";
    const stages = [];
    for (const stage of grid.stages) {
      const held = new Set(stage.slots.map(([, slot]) => slot).filter(slot => picks[slot]));
      if (![...held].some(slot => !taken.has(slot) && slot !== "data") && stage.kind !== fallback) continue;
      const onlyData = held.size === 1 && held.has("data");
      const options = {};
      for (const [name, slot, many] of stage.slots) {
        if (held.has(slot) || stage.required.includes(name) || (stage.kind === "quantize" && slot === "data") || (stage.kind === "evaluate" && slot === "environment" && !onlyData)) options[name] = many ? [ref(slot)] : ref(slot);
      }
      for (const [name, size] of Object.entries(grid.sizes)) if (stage.required.includes(name)) options[name] = size;
      stages.push({ [stage.kind]: options });
      held.forEach(slot => taken.add(slot));
    }
    return { name: "composed", resources: { device, dtype: "bfloat16" }, model, stages };
  }

  function yaml(stack) {
    const flow = value => Array.isArray(value) ? `[${value.map(flow).join(", ")}]` : value && typeof value === "object" ? `{${Object.entries(value).map(([key, item]) => `${key}: ${flow(item)}`).join(", ")}}` : typeof value === "string" && /^[A-Za-z][\w.-]*$/.test(value) && !/^(true|false|null|yes|no|on|off)$/i.test(value) ? value : JSON.stringify(value);
    const lines = Object.entries(stack).filter(([key]) => key !== "stages").map(([key, value]) => `${key}: ${flow(value)}`);
    for (const stage of stack.stages) for (const [kind, options] of Object.entries(stage)) lines.push(`  - ${kind}:`, ...Object.entries(options).map(([key, value]) => `      ${key}: ${flow(value)}`));
    lines.splice(3, 0, "stages:");
    return lines.join("\n") + "\n";
  }

  function python(stack) {
    const value = item => Array.isArray(item) ? `[${item.map(value).join(", ")}]` : item && item.use ? `sl.use(${[JSON.stringify(item.use), ...Object.entries(item).filter(([key]) => key !== "use").map(([key, one]) => `${key}=${value(one)}`)].join(", ")})` : item === true ? "True" : item === false ? "False" : item === null ? "None" : JSON.stringify(item);
    const stages = stack.stages.flatMap(stage => Object.entries(stage)).map(([kind, options]) => `        sl.stage(${[JSON.stringify(kind), ...Object.entries(options).map(([key, item]) => `${key}=${value(item)}`)].join(", ")}),`);
    return ["import stackloom as sl", "", "stack = sl.Stack(", `    ${JSON.stringify(stack.name)},`, `    model=${value(stack.model)},`, "    stages=[", ...stages, "    ],", `    device=${JSON.stringify(stack.resources.device)},`, `    dtype=${JSON.stringify(stack.resources.dtype)},`, ")", "print(stack.plan())", ""].join("\n");
  }

  function link(text) {
    const code = btoa(String.fromCharCode(...new TextEncoder().encode(text))).replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");
    return `${location.href.split("#")[0]}#stack=${code}`;
  }

  function start(place, grid) {
    const controls = place.querySelector(".picks");
    const select = (name, choices) => {
      const label = document.createElement("label");
      const box = document.createElement("select");
      box.name = name;
      label.append(name, box);
      for (const [value, words] of choices) box.add(new Option(words, value));
      controls.append(label);
      return box;
    };
    const shape = select("model", grid.shapes.map(name => [name, name]));
    const device = select("device", Object.entries(grid.devices).map(([name, row]) => [name, row.title]));
    const boxes = Object.entries(grid.slots).map(([slot, plugins]) => [slot, select(slot, [["", "none"], ...plugins.map(plugin => [plugin, plugin])])]);
    const show = (name, text) => { place.querySelector(`[data-output=${name}]`).textContent = text; };

    function update() {
      const picks = Object.fromEntries(boxes.map(([slot, box]) => [slot, box.value]).filter(([, value]) => value));
      const row = grid.devices[device.value];
      const fits = grid.fits[shape.value][row.kind];
      const why = (plugin, slot) => {
        if (grid.blocked[plugin]) return `${plugin} ${grid.blocked[plugin]}`;
        const others = Object.entries(picks).filter(([other]) => other !== slot).map(([, other]) => [plugin, other].sort().join(" "));
        const bad = [plugin, ...others].find(key => fits[key] && fits[key][0] >= 0);
        return bad ? `${bad.replace(" ", " with ")}: ${grid.reasons[fits[bad][0]]}` : "";
      };
      const reasons = new Set();
      for (const [slot, box] of boxes) {
        for (const option of box.options) {
          const reason = option.value ? why(option.value, slot) : "";
          option.textContent = reason ? `${option.value} (blocked)` : option.value || "none";
          option.title = reason;
          if (reason && option.value === box.value) reasons.add(reason);
        }
        box.setAttribute("aria-invalid", String(Boolean(box.value && why(box.value, slot))));
      }
      const names = Object.values(picks);
      const keys = names.length > 1 ? names.flatMap((one, at) => names.slice(at + 1).map(two => [one, two].sort().join(" "))) : names;
      const known = keys.map(key => fits[key]).filter(fit => fit && fit[0] < 0).map(fit => fit[1]);
      const bytes = Math.max(0, ...known);
      const file = Object.keys(picks).length ? yaml(compose(grid, shape.value, device.value, picks)) : "";
      const full = row.bytes && bytes > row.bytes;
      const memory = !bytes ? "" : `${names.length > 2 ? "at least " : ""}${gib(bytes)}${row.bytes ? ` of ${gib(row.bytes)}` : ""}`;
      if (full) reasons.add(`needs ${memory}: too much for ${row.title}`);
      const blocked = [...reasons];
      show("verdict", !names.length ? "Choose a plugin." : blocked.length ? `Blocked. ${blocked.join(" ")}` : names.length > 2 ? "Every two of these fit. Three and more are off the grid: the command below plans them together." : "Fits.");
      show("memory", memory ? `Memory of the worst stage: ${memory}.` : "");
      show("yaml", file);
      show("python", file ? python(compose(grid, shape.value, device.value, picks)) : "");
      show("link", file ? `stackloom plan '${link(file)}'` : "");
    }
    place.addEventListener("change", update);
    update();
  }

  document.addEventListener("DOMContentLoaded", () => {
    const data = window.stackloomGrid;
    const place = document.querySelector(".composer-page");
    if (place && data) start(place, data);
  });
})();
