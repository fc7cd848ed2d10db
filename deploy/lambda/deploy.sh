#!/usr/bin/env bash
# Builds the function's image, pushes it to ECR, deploys template.yaml with the image's digest, and waits until the function runs it.
#
#   deploy/lambda/deploy.sh [--stack NAME] [--model NAME] [--memory MB] [--url-auth AWS_IAM|NONE] [--image-only] [--dry-run]
#
# With --url-auth NONE the URL is open to everyone who has the API key, which is read from WHISPER_API_KEY. --image-only changes nothing
# but the image of a function that is deployed. --dry-run prints the commands and runs none. Needs docker and the AWS command line
# (version 2) with credentials and a region.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
STACK=whisper MODEL=base MEMORY=3538 URL_AUTH=AWS_IAM IMAGE_ONLY="" DRY_RUN=""

say() { echo "deploy.sh: $*" >&2; }
fail() { say "$@"; exit 1; }

# Prints a command without the API key, and runs it unless this is a dry run.
run() {
    local line
    line=$(printf ' %q' "$@")
    echo "+${line//"$(printf '%q' "${WHISPER_API_KEY:-none}")"/***}" >&2
    [[ -n $DRY_RUN ]] || "$@"
}

# The same for a command whose output is used. A dry run uses the first argument in its place.
ask() {
    local placeholder=$1
    shift
    run "$@"
    [[ -z $DRY_RUN ]] || echo "$placeholder"
}

read_arguments() {
    while (($#)); do
        case $1 in
            --stack) STACK=${2:?--stack needs a name}; shift ;;
            --model) MODEL=${2:?--model needs a name}; shift ;;
            --memory) MEMORY=${2:?--memory needs a number of MB}; shift ;;
            --url-auth) URL_AUTH=${2:?--url-auth needs AWS_IAM or NONE}; shift ;;
            --image-only) IMAGE_ONLY=1 ;;
            --dry-run) DRY_RUN=1 ;;
            -h | --help) sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit ;;
            *) fail "unknown argument $1 (see --help)" ;;
        esac
        shift
    done
    [[ $STACK =~ ^[a-z][a-z0-9-]{0,29}$ ]] || fail "--stack must be 1 to 30 of a-z, 0-9 and -, for the names of buckets; got '$STACK'"
    [[ $MEMORY =~ ^[0-9]+$ && $MEMORY -ge 1769 && $MEMORY -le 10240 ]] || fail "--memory must be 1769 to 10240 MB, got '$MEMORY'"
    [[ $URL_AUTH == AWS_IAM || ($URL_AUTH == NONE && -n ${WHISPER_API_KEY:-}) ]] ||
        fail "--url-auth must be AWS_IAM, or NONE with an API key in WHISPER_API_KEY"
}

check_tools() {
    local tool
    [[ -z $DRY_RUN ]] || return 0
    for tool in docker aws; do
        command -v "$tool" >/dev/null || fail "$tool is missing: install it"
    done
}

aws_has_repository() {
    [[ -z $DRY_RUN ]] && aws ecr describe-repositories --repository-names "$STACK" --output text >/dev/null 2>&1
}

# Builds and pushes the image. Sets IMAGE to its address with the digest.
push_image() {
    local region account registry tag
    region=${AWS_REGION:-${AWS_DEFAULT_REGION:-}}
    [[ -n $region ]] || region=$(ask REGION aws configure get region) || fail "no region: set AWS_REGION, or run aws configure"
    account=$(ask ACCOUNT aws sts get-caller-identity --query Account --output text)
    registry=$account.dkr.ecr.$region.amazonaws.com
    tag=$registry/$STACK:$MODEL-$(git -C "$ROOT" rev-parse --short HEAD 2>/dev/null || echo local)
    if ! aws_has_repository; then
        run aws ecr create-repository --repository-name "$STACK" --image-scanning-configuration scanOnPush=true --output text >/dev/null
    fi
    [[ -n $DRY_RUN ]] || aws ecr get-login-password | docker login --username AWS --password-stdin "$registry" >/dev/null
    # Lambda takes no image with attestations, which docker adds by default.
    run docker build --platform linux/amd64 --provenance=false --file "$ROOT/deploy/lambda/Dockerfile" --build-arg "MODEL=$MODEL" --tag "$tag" "$ROOT"
    run docker push "$tag"
    IMAGE=$registry/$STACK@$(ask DIGEST aws ecr describe-images --repository-name "$STACK" --image-ids "imageTag=${tag##*:}" \
        --query 'imageDetails[0].imageDigest' --output text)
}

deploy_stack() {
    run aws cloudformation deploy --stack-name "$STACK" --template-file "$ROOT/deploy/lambda/template.yaml" \
        --capabilities CAPABILITY_IAM CAPABILITY_AUTO_EXPAND --no-fail-on-empty-changeset \
        --parameter-overrides "ImageUri=$IMAGE" "MemorySize=$MEMORY" "UrlAuth=$URL_AUTH" ${WHISPER_API_KEY:+"ApiKey=$WHISPER_API_KEY"}
}

output() {
    ask "$1" aws cloudformation describe-stacks --stack-name "$STACK" --query "Stacks[0].Outputs[?OutputKey=='$1'].OutputValue" --output text
}

# Waits until the function runs the image that was pushed.
wait_for_image() {
    local function=$1 running
    run aws lambda wait function-updated-v2 --function-name "$function"
    running=$(ask "$IMAGE" aws lambda get-function --function-name "$function" --query Code.ResolvedImageUri --output text)
    [[ $running == "$IMAGE" ]] || fail "$function runs $running, not $IMAGE: deploy again"
}

read_arguments "$@"
check_tools
push_image
if [[ -n $IMAGE_ONLY ]]; then
    function=$(output FunctionName)
    run aws lambda update-function-code --function-name "$function" --image-uri "$IMAGE" --output text >/dev/null
else
    deploy_stack
    function=$(output FunctionName)
fi
wait_for_image "$function"
say "$function runs $IMAGE"
say "upload recordings to s3://$(output Recordings); the URL is $(output Url)"
