-- wrk's side: one pre-signed token a request, every answer checked, figures as one line of JSON.
local bodies, n = {}, 0
local offset, failures, first = 0, 0, nil

function setup(thread)
  thread:set("started", tonumber(os.getenv("BENCH_OFFSET") or "0"))
end

function init(args)
  for line in io.lines(os.getenv("BENCH_POOL")) do
    bodies[#bodies + 1] = line
  end
  n = #bodies
  offset = started
  failures = 0
  wrk.method = "POST"
  wrk.headers["Content-Type"] = "application/x-www-form-urlencoded"
end

function request()
  offset = offset + 1
  return wrk.format(nil, nil, nil, bodies[(offset % n) + 1])
end

function response(status, headers, body)
  if status ~= 200 or not string.find(body, '"access_token":"', 1, true) then
    failures = failures + 1
    if first == nil then
      first = true
      io.stderr:write("answer ", status, " ", string.sub(body, 1, 300), "\n")
    end
  end
end

function done(summary, latency, requests)
  local line = '{"requests":%d,"duration_us":%d,"p50_us":%d,"p99_us":%d,"errors":%d,"socket_errors":%d}\n'
  local e = summary.errors
  io.write(string.format(line, summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    e.status, e.connect + e.read + e.write + e.timeout))
end
