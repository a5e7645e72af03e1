-- Of one channel: KEYS[1] is where it stands (a hash), KEYS[2] its history (a stream of one entry a publication, whose id is the
-- offset and whose one field is named after the time).

-- Another server, one that was started again and one that was promoted are others, and may know less than others have seen.
local life = string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)')
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

-- Where the channel stands, and whether that is to be written; `new_epoch` is for the life that begins where it cannot go on:
-- where it is not known, was written in another life of the server, or where somebody has seen `seen` of it and it has less.
local function place(new_epoch, seen_epoch, seen)
  local epoch, offset, of, lineage =
    unpack(redis.call('HMGET', KEYS[1], 'epoch', 'offset', 'life', 'lineage'))
  if not epoch then
    redis.call('DEL', KEYS[2])
    return new_epoch, 0, '', true
  end
  offset = tonumber(offset)
  if of == life and not (epoch == seen_epoch and seen > offset) then
    return epoch, offset, lineage, false
  end
  -- Of 16 bytes each, the newest first.
  lineage = string.sub(epoch .. struct.pack('>I8', offset) .. lineage, 1, 16 * 16)
  return new_epoch, offset, lineage, true
end

local function id(offset)
  return string.format('%.0f', offset)
end

-- The first entry at an offset or behind it.
local function entry_at(offset)
  return redis.call('XRANGE', KEYS[2], id(offset), '+', 'COUNT', 1)[1]
end

local function offset_of(entry)
  return tonumber(string.match(entry[1], '^%d+'))
end

local function time_of(entry)
  return tonumber(entry[2][1])
end
