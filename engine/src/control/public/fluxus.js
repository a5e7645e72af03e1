// Calls methods of the server that has sent this: `VecturaRPC.call("a.b", {x: 1})`, or `VecturaRPC.a.b({x: 1})`.
(function () {
  "use strict";
  var url = (location.protocol === "https:" ? "wss://" : "ws://") + location.host + /*PATH*/"/";
  var methods = /*METHODS*/[];
  var socket = null, waiting = {}, queued = [], count = 0;

  function settle(id, settled) {
    var call = waiting[id];
    if (!call) return;
    delete waiting[id];
    clearTimeout(call.timer);
    settled(call);
  }
  function told(event) {
    var said;
    try { said = JSON.parse(event.data); } catch (e) { return; }
    if (said.type !== "rpc_response" && said.type !== "rpc_error" && said.type !== "rpc_success") return;
    if (said.status === "accepted") return;
    settle(said.id, function (call) {
      if (said.status === "success") call.resolve(said.result || said.message || said);
      else call.reject(new Error((said.error && said.error.message) || "Unknown RPC error"));
    });
  }
  function open() {
    socket = new WebSocket(url);
    socket.onopen = function () { queued.splice(0).forEach(function (text) { socket.send(text); }); };
    socket.onmessage = told;
    socket.onclose = function () {
      socket = null;
      Object.keys(waiting).forEach(function (id) {
        settle(id, function (call) { call.reject(new Error("The connection was closed")); });
      });
    };
  }
  function call(method, params, timeout) {
    return new Promise(function (resolve, reject) {
      var id = "rpc_" + Date.now() + "_" + (++count);
      var text = JSON.stringify({ action: "rpc", id: id, method: method, params: params || {}, timestamp: Date.now() });
      var timer = setTimeout(function () {
        settle(id, function (late) { late.reject(new Error("The call took too long")); });
      }, timeout || 30000);
      waiting[id] = { resolve: resolve, reject: reject, timer: timer };
      if (socket && socket.readyState === WebSocket.OPEN) return socket.send(text);
      queued.push(text);
      if (!socket) open();
    });
  }
  var root = { call: call, methods: methods };
  methods.forEach(function (described) {
    var at = root, parts = described.method.split("."), last = parts.pop();
    parts.forEach(function (part) { at = at[part] = at[part] || {}; });
    if (!at[last]) at[last] = function (params, timeout) { return call(described.method, params, timeout); };
  });
  window.VecturaRPC = root;
})();
