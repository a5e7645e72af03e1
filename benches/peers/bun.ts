// uWebSockets, as Bun serves it: "S channel" subscribes, "P channel payload" publishes.
const [port, hostname] = process.argv.slice(2);
const server = Bun.serve({
  hostname,
  port: Number(port),
  fetch(request, server) {
    return server.upgrade(request) ? undefined : new Response("WebSocket only", { status: 400 });
  },
  websocket: {
    perMessageDeflate: false,
    idleTimeout: 0,
    sendPings: false,
    backpressureLimit: 64 * 1024 * 1024,
    maxPayloadLength: 16 * 1024 * 1024,
    message(socket, message: string) {
      const end = message.indexOf(" ", 2);
      if (message[0] === "S") socket.subscribe(message.slice(2));
      else server.publish(message.slice(2, end), message.slice(end + 1));
    },
  },
});
