// oauth4webapi, unmodified: discover, exchange, validate as a resource server (RFC 8414, 8693, 9068); or show the refusal.
import * as oauth from 'oauth4webapi'

const { issuer, token, audience, scope } = JSON.parse(process.argv[2])
const insecure = { [oauth.allowInsecureRequests]: true } // loopback only
const url = new URL(issuer)

const as = await oauth.processDiscoveryResponse(url, await oauth.discoveryRequest(url, { algorithm: 'oauth2', ...insecure }))
const parameters = new URLSearchParams({
  subject_token: token,
  subject_token_type: 'urn:ietf:params:oauth:token-type:id_token',
  audience: 'payments',
  scope,
})
const client = { client_id: 'ci' }
const response = await oauth.genericTokenEndpointRequest(
  as, client, oauth.None(), 'urn:ietf:params:oauth:grant-type:token-exchange', parameters, insecure,
)
let result
try {
  result = await oauth.processGenericTokenEndpointResponse(as, client, response)
} catch (refusal) {
  if (!(refusal instanceof oauth.ResponseBodyError)) throw refusal
  const { status, error, error_description } = refusal
  console.log(JSON.stringify({ status, error, error_description }))
  process.exit(1)
}
const request = new Request(audience, { headers: { authorization: `Bearer ${result.access_token}` } })
const claims = await oauth.validateJwtAccessToken(as, request, audience, insecure)
console.log(JSON.stringify(claims))
