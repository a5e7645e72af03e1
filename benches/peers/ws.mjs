// ws: "S channel" subscribes, "P channel payload" publishes.
import { createRequire } from "node:module";
const { WebSocketServer } = createRequire(process.cwd() + "/")("ws");
const channels = new Map();
const server = new WebSocketServer({
  host: process.argv[3], port: Number(process.argv[2]), perMessageDeflate: false, backlog: 4096,
});
server.on("connection", (socket) => {
  const own = [];
  socket.on("message", (data) => {
    const message = data.toString();
    if (message[0] === "S") {
      const name = message.slice(2);
      if (!channels.has(name)) channels.set(name, new Set());
      channels.get(name).add(socket);
      own.push(name);
      return;
    }
    const end = message.indexOf(" ", 2);
    const payload = Buffer.from(message.slice(end + 1));
    for (const subscriber of channels.get(message.slice(2, end)) ?? []) {
      subscriber.send(payload, { binary: false });
    }
  });
  socket.on("close", () => own.forEach((name) => channels.get(name).delete(socket)));
  socket.on("error", () => {});
});
