// The testee with React Native's own URL, URLSearchParams and WebSocket, compiled as an app's bundler does. What is native
// code on a phone is the package `ws` here. node react-native.cjs APP vendor|customer URL SETTINGS

const Module = require("node:module");
const { basename, join, resolve } = require("node:path");
const { pathToFileURL } = require("node:url");

const [app] = process.argv.splice(2, 1);
const from = Module.createRequire(join(resolve(app), "package.json"));
const { transformSync } = from("@babel/core");
const NativeWebSocket = from("ws");

const listeners = new Map();
const emit = (name, event) => [...(listeners.get(name) ?? [])].forEach((listener) => listener(event));
const sockets = new Map();

const native = {
  NativeWebSocketModule: {
    connect(url, protocols, _, id) {
      const socket = new NativeWebSocket(url, protocols ?? []);
      sockets.set(id, socket);
      socket.onopen = () => emit("websocketOpen", { id, protocol: socket.protocol });
      socket.onmessage = ({ data }) => emit("websocketMessage", { type: "text", id, data });
      socket.onerror = () => {}; // its close follows
      socket.onclose = ({ code, reason }) =>
        code === 1006 ? emit("websocketFailed", { id, message: "the connection failed" }) : emit("websocketClosed", { id, code, reason });
    },
    send: (text, id) => sockets.get(id).send(text),
    close: (code, reason, id) => sockets.get(id).close(code, reason),
  },
  NativeEventEmitter: class {
    addListener(name, listener) {
      if (!listeners.has(name)) listeners.set(name, new Set());
      listeners.get(name).add(listener);
      return { remove: () => listeners.get(name).delete(listener) };
    }
  },
  NativeBlobModule: null,
  BlobManager: { isAvailable: false },
  Blob: class {},
  Platform: { OS: "android" },
};

const load = Module._load;
Module._load = function (request, parent, ...rest) {
  const name = basename(request);
  return parent?.filename.includes("react-native") && name in native ? { __esModule: true, default: native[name] } : load.call(this, request, parent, ...rest);
};
const compile = Module._extensions[".js"];
Module._extensions[".js"] = function (module, filename) {
  if (!filename.includes("/react-native/")) return compile(module, filename);
  const presets = [[from.resolve("@react-native/babel-preset"), { enableBabelRuntime: false }]];
  const { code } = transformSync(require("node:fs").readFileSync(filename, "utf8"), { filename, presets, babelrc: false, configFile: false });
  module._compile(code, filename);
};

const { URL, URLSearchParams } = from("react-native/Libraries/Blob/URL");
const WebSocket = from("react-native/Libraries/WebSocket/WebSocket").default;
const testee = pathToFileURL(join(__dirname, "../../clients/conformance/testee.mjs")).href;
Object.assign(globalThis, { URL, URLSearchParams, WebSocket });
Object.defineProperty(globalThis, "navigator", { value: { product: "ReactNative" }, configurable: true });
import(testee);
